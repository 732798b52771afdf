"""Fixtures of the front ends: a painted atlas, its site, a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from painted import make_atlas


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole atlas with hostile labels and names; read it only."""
    return make_atlas(tmp_path_factory.mktemp("whole") / "atlas")


@pytest.fixture(scope="session")
def site(atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of `atlas`; read it only."""
    from penlight.web.site import build_site

    return build_site(atlas, tmp_path_factory.mktemp("site") / "out").parent


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; missing, it is a failure on CI and a skip elsewhere."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        reason = "no Chromium (or no playwright) to open the pages with"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as play:
        quiet += ["--disable-component-update", "--disable-sync"]
        opened = play.chromium.launch(executable_path=program, args=quiet)
        yield opened
        opened.close()

"""Make the pictures of README and docs from the demo's site: `make demo && .venv/bin/python docs/make_pictures.py`.

Needs the `test` extra (playwright) and Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
DEMO = HERE.parent / "demo"
SHOTS = {  # file: (page, width, height of what is shown, colour scheme)
    "model.png": ("site/index.html", 1180, 900, "light"),
    "unit.png": ("site/units/conv4/17.html", 1180, 1010, "dark"),
    "classes.png": ("site/classes.html", 1180, 1010, "light"),
    "layer.png": ("site/layers/conv1.html", 1180, 960, "light"),
    "cells.png": ("code/site/text.html", 1180, 900, "light"),
    "columns.png": ("biopsies/site/units/score/0.html", 1180, 900, "light"),
}


def main() -> None:
    """Write docs/pictures/*.png."""
    missing = [page for page, *_ in SHOTS.values() if not (DEMO / page).exists()]
    if missing:
        sys.exit(f"there is no {DEMO / missing[0]}; run 'make demo' first")
    chromium = next(p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name)))
    (HERE / "pictures").mkdir(exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, (page, width, height, scheme) in SHOTS.items():
            shown = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            shown.goto((DEMO / page).as_uri())
            shown.wait_for_load_state("networkidle")
            shown.screenshot(path=HERE / "pictures" / name)
            print(HERE / "pictures" / name)
        browser.close()


if __name__ == "__main__":
    main()

"""The text behind the specimen `code`: the modules of Python's standard library, split by file."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OUTSIDE = (
    "test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data", "turtledemo", "__pycache__",
)  # fmt: skip
"""Folders that are left out: tests and code tables, which would drown what people write."""
HELD_OUT = 10  # one file in so many, by the hash of its path


class Unusable(Exception):
    """A mistake of the user's, told in one line."""


@dataclass(frozen=True)
class File:
    """One module: its path below the library, its text, and the digest of its bytes."""

    path: str
    text: str
    size: int
    digest: str

    @property
    def held_out(self) -> bool:
        """Whether the network must not see it."""
        return int(hashlib.sha256(self.path.encode()).hexdigest(), 16) % HELD_OUT == 0


def library() -> Path:
    """Where this Python keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def collect(folder: Path) -> list[File]:
    """Every module below `folder`, by path; `Unusable` if there are none."""
    files = []
    for path in sorted(folder.rglob("*.py")):
        below = path.relative_to(folder)
        if set(below.parts[:-1]) & set(OUTSIDE) or below.parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        data = path.read_bytes()
        text = data.decode("utf-8", "replace").replace("\r\n", "\n")
        if text.strip():
            files.append(File(below.as_posix(), text, len(data), hashlib.sha256(data).hexdigest()))
    if not files:
        raise Unusable(f"{folder} holds no Python modules; give the library's folder, as in /usr/lib/python3.11")
    return files


def total(files: Sequence[File]) -> str:
    """One digest of all files and their paths."""
    lines = "".join(f"{file.digest} {file.path}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def listing(files: Sequence[File]) -> str:
    """What is recorded: a head, and a line a file."""
    head = f"# CPython {platform.python_version()}: {len(files)} files, sha256 of the lines below without side and size {total(files)}\n"
    rows = (f"{'held-out' if file.held_out else 'train'} {file.size} {file.digest} {file.path}\n" for file in files)
    return head + "".join(rows)

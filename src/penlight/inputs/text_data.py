"""Texts to look through: files, folders and archives of them, strings."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput
from penlight.inputs.text import TextContract

LITERAL = "text:"  # says that a string is the text itself
_BINARY = 8192  # bytes that are looked at for a zero, which no text has


@dataclass(frozen=True, eq=False)
class _Source:
    """Where one text is: its name, its class, and how to fetch it."""

    name: str
    label: int | None
    fetch: Callable[[], str]  # can be pickled, so that another process reads the same text
    size: str  # what changes when the text does


class TextData:
    """Texts by number, in the order of their names; read one at a time.

    `name` says what they are, `classes` the names of the first level of folders, where there are any. An input is int64 (T,).
    """

    def __init__(
        self, name: str, contract: TextContract, sources: Sequence[_Source], classes: Sequence[str] = ()
    ) -> None:
        self.name, self.classes = name, tuple(classes)
        self._contract, self._sources = contract, list(sources)

    def __len__(self) -> int:
        return len(self._sources)

    def some(self, numbers: Sequence[int]) -> TextData:
        """Only these texts."""
        return TextData(self.name, self._contract, [self._sources[n] for n in numbers], self.classes)

    def label(self, index: int) -> tuple[str, int | None]:
        """(name, class index or None)."""
        return self._sources[index].name, self._sources[index].label

    def text(self, index: int) -> str:
        """The text itself, line ends as \\n; `BadInput` if it is none."""
        return self._sources[index].fetch()

    def read(self, index: int) -> NDArray[np.int64]:
        """Numbers of its tokens, int64 (T,); `BadInput` if it cannot be read or has none."""
        return self._contract.encode(self.text(index), self._sources[index].name)

    def fingerprint(self) -> str:
        """A digest that changes when a text does."""
        lines = "".join(f"{source.name}\0{source.size}\0{source.label}\n" for source in self._sources)
        return hashlib.sha256(lines.encode()).hexdigest()


def open_texts(source: Any, contract: TextContract, labels: Sequence[str] | None = None) -> TextData:
    """Texts from what the user has.

    `source` is a text file, a folder of them (the first level of subfolders are classes), a .zip of them, a text itself, or a sequence of
    texts, files or (text, class number) pairs. A string with white space in it is a text unless a file has that name, and so is what
    follows "text:".
    """
    if hasattr(source, "text") and hasattr(source, "fingerprint"):
        return source  # type: ignore[no-any-return]
    if isinstance(source, str) and source.startswith(LITERAL):
        return TextData("text", contract, [_literal("text", source.removeprefix(LITERAL))])
    if isinstance(source, Path) or (isinstance(source, str) and not _is_text(source)):
        return _from_path(Path(source), contract)
    if isinstance(source, str):
        return TextData("text", contract, [_literal("text", source)])
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise BadInput(
            f"a {type(source).__name__} is no text; give a file, a folder, a .zip, a string or a list of strings"
        )
    found = []
    for n in range(len(source)):
        item, label = source[n] if isinstance(source[n], tuple) and len(source[n]) == 2 else (source[n], None)
        if isinstance(item, Path) or (isinstance(item, str) and not _is_text(item) and Path(item).is_file()):
            found.append(_file(Path(item), str(item), label))
        elif isinstance(item, str):
            found.append(_literal(f"text {n}", item, label))
        else:
            raise BadInput(
                f"item {n} is a {type(item).__name__}, no text; give strings, files or (text, class number) pairs"
            )
    if not found:
        raise BadInput("there are no texts in the list")
    numbers = [one.label for one in found if one.label is not None]
    known = tuple(labels or map(str, range(max(numbers) + 1))) if numbers else ()
    return TextData(f"{len(found)} texts", contract, found, known)


def texts_of(pairs: Sequence[tuple[str, str]], contract: TextContract) -> TextData:
    """(name, text) pairs as data."""
    name = pairs[0][0] if len(pairs) == 1 else f"{len(pairs)} texts"
    return TextData(name, contract, [_literal(own, text) for own, text in pairs])


def read_text(source: Any, contract: TextContract, own: Any = None) -> tuple[str, str]:
    """(name, text) of one text: `data:N` of the data `own`, a file, or the text itself."""
    if isinstance(source, str) and (numbered := re.fullmatch(r"data:(\d+)", source)) is not None:
        if own is None:
            raise BadInput(f"there is no data for {source!r} to count in; name a file, or give the data too")
        if int(numbered[1]) >= len(own):
            raise BadInput(f"{own.name} has texts 0 to {len(own) - 1}; there is no {numbered[1]}")
        return own.label(int(numbered[1]))[0], own.text(int(numbered[1]))
    if isinstance(source, np.ndarray) or hasattr(source, "detach"):
        ids = source.detach().cpu().numpy() if hasattr(source, "detach") else source
        ids = ids[0] if ids.ndim == 2 and len(ids) == 1 else ids
        contract.check(ids[None])
        return "tokens", contract.decode(ids)
    if not isinstance(source, str | Path):
        raise BadInput(f"a {type(source).__name__} is no text; give a file, a string, token numbers, or data:N")
    found = open_texts(source, contract)
    if len(found) > 1:
        raise BadInput(f"{source} holds {len(found)} texts; one is looked at here: name a file in it")
    return found.label(0)[0], found.text(0)


def _is_text(source: str) -> bool:
    """Whether a string is a text rather than a path."""
    if "\n" in source or len(source) > 1000:
        return True
    try:
        return not Path(source).exists() and any(c.isspace() for c in source)
    except (OSError, ValueError):
        return True


def _from_path(path: Path, contract: TextContract) -> TextData:
    if path.is_dir():
        files = sorted(
            (p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path))),
            key=lambda p: p.relative_to(path).as_posix(),
        )
        texts = [p for p in files if _looks_like_text(p)]
        if not texts:
            raise BadInput(f"{path} holds no text files" + (f", only {len(files)} others" if files else ""))
        parts = [p.relative_to(path).parts for p in texts]
        classes = sorted({part[0] for part in parts if len(part) > 1}) if all(len(part) > 1 for part in parts) else []
        numbers = {name: n for n, name in enumerate(classes)}
        found = [_file(p, "/".join(part), numbers.get(part[0])) for p, part in zip(texts, parts, strict=True)]
        return TextData(path.name or str(path), contract, found, classes)
    if not path.exists():
        raise BadInput(
            f"there is no text file {path}; give a file, a folder of text files, a .zip, or text:THE TEXT ITSELF"
        )
    if path.suffix.lower() == ".zip":
        return TextData(path.name, contract, _archive(path))
    return TextData(path.name, contract, [_file(path, path.name)])


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _looks_like_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" not in file.read(_BINARY)
    except OSError:
        return False


def _literal(name: str, text: str, label: int | None = None) -> _Source:
    return _Source(name, label, partial(_plain, text), hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())


def _file(path: Path, name: str, label: int | None = None) -> _Source:
    try:
        stat = path.stat()
    except OSError as error:
        raise BadInput(f"there is no text file {path}") from error
    return _Source(name, label, partial(_from_file, path, name), f"{stat.st_size} {stat.st_mtime_ns}")


def _from_file(path: Path, name: str) -> str:
    try:
        return _decoded(path.read_bytes(), name)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


def _archive(path: Path) -> list[_Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir() and not _hidden(Path(e.filename))]
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} cannot be read as an archive: {error}") from error
    if not entries:
        raise BadInput(f"{path} is an archive without files")

    ordered = sorted(entries, key=lambda e: e.filename)
    return [
        _Source(e.filename, None, partial(_from_archive, path, e.filename), f"{e.file_size} {e.CRC:x}") for e in ordered
    ]


def _from_archive(path: Path, name: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return _decoded(archive.read(name), name)
    except (OSError, zipfile.BadZipFile, KeyError, RuntimeError) as error:
        raise BadInput(f"{name} in {path} cannot be read: {error}") from error


def _decoded(data: bytes, name: str) -> str:
    if b"\0" in data[:_BINARY]:
        raise BadInput(f"{name} is no text: it holds zero bytes")
    text = _plain(data.decode("utf-8-sig", "replace"))
    if not text:
        raise BadInput(f"{name} is empty")
    return text


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")

"""What every answer has in common: where it came from, and how it is kept on disk, in JSON and in a notebook."""

from __future__ import annotations

import base64
import html
import io
import json
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput, BadOutput, BadUnit, UnknownName

SCHEMA_VERSION = 1
_KINDS: dict[str, type[Result]] = {}


@dataclass(frozen=True)
class Provenance:
    """Where a result came from: enough to make it again."""

    model: str = ""  # the reference the model was loaded by
    model_hash: str = ""  # hex digest of its weights and structure
    technique: str = ""  # the verb
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    data: str | None = None  # name of the data set, if one was read
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """One picture of a result: (H, W, C) or (H, W) uint8, a file name without ending, and what it shows."""

    name: str
    pixels: NDArray[np.uint8]
    caption: str

    def png(self) -> bytes:
        """The picture as PNG bytes; one, three or four channels as they are, any other number as a grey montage."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(displayable(self.pixels)).save(buffer, "PNG")
        return buffer.getvalue()


def displayable(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C) → something a screen shows: grey for C = 1, colour for 3 and 4, channels side by side for the rest."""
    if pixels.ndim == 2 or pixels.shape[2] in (3, 4):
        return pixels
    return np.concatenate([pixels[..., c] for c in range(pixels.shape[2])], axis=1)


class Result(ABC):
    """Base of all results. A subclass is a frozen dataclass whose array fields are NumPy arrays."""

    kind: ClassVar[str]
    provenance: Provenance

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The result in JSON's types, without pixels and bulky arrays."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """(JSON part, arrays): all that `from_state` needs to build an equal result."""

    @classmethod
    @abstractmethod
    def from_state(cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Result:
        """The inverse of `state`."""

    @abstractmethod
    def pictures(self) -> Iterable[Picture]:
        """The pictures to be saved or shown, in order."""

    def to_dict(self) -> dict[str, Any]:
        """`summary` with the kind, the schema version and the provenance."""
        return {**self._head(), **self.summary()}

    def _head(self) -> dict[str, Any]:
        return {"kind": self.kind, "schema_version": SCHEMA_VERSION, "provenance": asdict(self.provenance)}

    def to_json(self, indent: int | None = None) -> str:
        """The result as JSON text; pixels stay out, `save` writes them as files."""
        return json.dumps(plain(self.to_dict()), indent=indent, ensure_ascii=False, allow_nan=False)

    def save(
        self,
        folder: str | Path,
        more: Iterable[Picture] = (),
        *,
        summary: bool = True,
        pages: Mapping[str, str] | None = None,
    ) -> Path:
        """Write pictures (and `more` of them), `arrays.npz` and `results.json` to `folder`, whole or not at all; returns it.

        `pages` are further files by name, with their text. Without `summary`, `results.json` holds only what `load_result` needs.

        An earlier result in the folder is replaced. Raises `BadOutput` if it holds anything else or cannot be written.
        """
        return save_folder(Path(folder), self._files(more, summary, pages or {}))

    def _files(self, more: Iterable[Picture], summary: bool, pages: Mapping[str, str]) -> Iterable[tuple[str, bytes]]:
        names: list[str] = []
        for name, text in pages.items():
            names.append(name)
            yield name, text.encode("utf-8", "replace")
        for picture in chain(self.pictures(), more):
            names.append(f"{picture.name}.png")
            yield names[-1], picture.png()
        data, arrays = self.state()
        if arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            yield "arrays.npz", buffer.getvalue()
        told = self.to_dict() if summary else self._head()
        manifest = {**told, "files": names, "state": data}
        text = json.dumps(plain(manifest), indent=1, ensure_ascii=False, allow_nan=False)
        yield "results.json", text.encode()

    def _repr_html_(self) -> str:
        cells = []
        for count, picture in enumerate(self.pictures()):
            if count == 64:
                cells.append("<p>… more with <code>.save(folder)</code></p>")
                break
            text = html.escape(picture.caption)
            data = base64.b64encode(picture.png()).decode()
            cells.append(
                f'<figure style="display:inline-block;margin:4px;text-align:center"><img alt="{text}" '
                f'src="data:image/png;base64,{data}" style="width:96px;image-rendering:pixelated">'
                f'<figcaption style="font-size:11px">{text}</figcaption></figure>'
            )
        return f"<div>{''.join(cells) or '<pre>' + html.escape(self.to_json(indent=1)) + '</pre>'}</div>"


def load_result(folder: str | Path) -> Result:
    """Read a result that `Result.save` wrote; `BadInput` if the folder holds none or is incomplete."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "results.json").read_text("utf-8"))
        cls = _KINDS[manifest["kind"]]
        arrays: dict[str, NDArray[Any]] = {}
        if (folder / "arrays.npz").exists():
            with (folder / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        return cls.from_state(Provenance(**manifest["provenance"]), manifest["state"], arrays)
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{folder} holds no whole result ({error}); save one there with Result.save") from error


def may_replace(folder: Path) -> bool:
    """Whether `folder` holds an earlier result; `BadOutput` if it holds anything else."""
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return False
        if folder.is_dir() and "schema_version" in json.loads((folder / "results.json").read_text("utf-8")):
            return True
    except (OSError, ValueError, TypeError):
        pass
    raise BadOutput(f"{folder} exists and holds no result of Penlight's; name another place, or remove it")


def save_folder(folder: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write files to a folder that appears whole or not at all, in place of an earlier result."""
    replace = may_replace(folder)
    staging: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        staging.chmod(0o755)
        for name, content in files:
            (staging / name).write_bytes(content)
        if replace:
            folder.rename(staging.with_suffix(".old"))
        elif folder.exists():
            folder.rmdir()
        staging.rename(folder)
    except OSError as error:
        raise BadOutput(f"cannot write to {folder}: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(staging.with_suffix(".old"), ignore_errors=True)
    return folder


class Rows(Protocol):
    """One layer's rows, a unit each; `mean` is there for all of them."""

    @property
    def mean(self) -> NDArray[Any]:
        """(U,) or more axes."""


R = TypeVar("R", bound=Rows)


def located(layers: Mapping[str, R], unit: str) -> tuple[R, int]:
    """(the layer's rows, index) of a unit that was surveyed; `UnknownName` or `BadUnit` says what there is."""
    path, _, index = unit.rpartition(":")
    if path not in layers:
        raise UnknownName("surveyed layer", path, list(layers))
    rows = layers[path]
    if not index.isdecimal() or int(index) >= len(rows.mean):
        raise BadUnit(f"layer {path!r} has units 0 to {len(rows.mean) - 1}; {index!r} is none of them")
    return rows, int(index)


def plain(value: Any) -> Any:
    """NumPy and Python values → JSON's types; numbers that JSON does not have become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value

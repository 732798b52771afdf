"""Data sets read one batch at a time: folders of pictures, .npz files, arrays, torch datasets."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penlight.errors import BadInput
from penlight.inputs.contract import InputContract
from penlight.inputs.image import SUFFIXES, channels_first, fit, read_picture
from penlight.inputs.table import TableContract
from penlight.inputs.text import TextContract
from penlight.inputs.text_data import TextData, open_texts


class Data(Protocol):
    """A data set: inputs by index, each with a name and perhaps a class."""

    name: str
    classes: tuple[str, ...]  # empty where nothing is labelled

    def __len__(self) -> int:
        """Number of inputs."""

    def label(self, index: int) -> tuple[str, int | None]:
        """(name, class index or None) of an input."""

    def read(self, index: int) -> NDArray[Any]:
        """One input to the contract: uint8, or float32 in [0, 1]; `BadInput` if it cannot be read."""

    def fingerprint(self) -> str:
        """A digest that changes when the data does."""


def pick(data: Data, numbers: Sequence[int]) -> Data:
    """A few inputs of a data set, by number."""
    return data.some(numbers) if isinstance(data, TextData) else Some(data, numbers)


class Some:
    """A few inputs of a data set; see `pick`."""

    def __init__(self, data: Data, numbers: Sequence[int]) -> None:
        self.name, self.classes = data.name, data.classes
        self._data, self._numbers = data, list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def label(self, index: int) -> tuple[str, int | None]:
        """(name, class index or None) of an input."""
        return self._data.label(self._numbers[index])

    def read(self, index: int) -> NDArray[Any]:
        """One input."""
        return self._data.read(self._numbers[index])

    def fingerprint(self) -> str:
        """A digest of the data's and the numbers."""
        return hashlib.sha256(f"{self._data.fingerprint()} {self._numbers}".encode()).hexdigest()


@dataclass(frozen=True)
class Batch:
    """Some inputs in order, those that could be read; `skipped` holds (index, name, reason) of the others."""

    index: tuple[int, ...]
    names: tuple[str, ...]
    classes: tuple[int | None, ...]
    inputs: NDArray[Any]  # (n, *shape), uint8 or float32 in [0, 1]
    skipped: tuple[tuple[int, str, str], ...]


def batches(data: Data, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
    """The inputs from `start` to `stop` (exclusive) in batches of `size`, the next one being read while one is worked on."""
    stop = len(data) if stop is None else min(stop, len(data))
    with ThreadPoolExecutor(1) as reader:
        waiting: Future[Batch] | None = None
        for first in range(start, stop, size):
            ready, waiting = waiting, reader.submit(_read, data, range(first, min(first + size, stop)))
            if ready is not None:
                yield ready.result()
        if waiting is not None:
            yield waiting.result()


def _read(data: Data, indices: range) -> Batch:
    good: list[int] = []
    inputs: list[NDArray[Any]] = []
    skipped: list[tuple[int, str, str]] = []
    for index in indices:
        try:
            inputs.append(data.read(index))
            good.append(index)
        except BadInput as error:
            skipped.append((index, data.label(index)[0], str(error)))
    labels = [data.label(index) for index in good]
    stacked = np.stack(inputs) if inputs else np.zeros((0,), np.float32)
    return Batch(tuple(good), tuple(n for n, _ in labels), tuple(c for _, c in labels), stacked, tuple(skipped))


def open_data(source: Any, contract: InputContract, labels: Sequence[str] | None = None) -> Data:
    """A data set from what the user has.

    `source` is a folder of pictures (subfolders are classes), an .npz file (`images`, and perhaps `labels`, `names`, `classes`), one
    picture, an array or tensor (N, *shape), a sequence of pictures, or a torch dataset of inputs or (input, class) pairs; for a
    network on text what `open_texts` takes, for one on tables what `open_table` does.
    `labels` are the model's, used for class numbers that have no names of their own.
    """
    if isinstance(contract, TextContract):
        return open_texts(source, contract, labels)
    if isinstance(contract, TableContract):
        from penlight.inputs.table_data import open_table  # which reads rows as this kind of data

        return open_table(source, contract, labels)
    if isinstance(source, str | Path):
        return _open_path(Path(source), contract, labels)
    if all(hasattr(source, name) for name in ("read", "label", "fingerprint", "classes")):
        return source  # type: ignore[no-any-return]
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return ArrayData("array", contract, source, None, labels)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return ItemData(source, contract, labels)
    raise BadInput(
        f"a {type(source).__name__} is no data set; give a folder, an .npz file, an array, or a dataset with len() and [i]"
    )


def _open_path(path: Path, contract: InputContract, labels: Sequence[str] | None) -> Data:
    if path.is_dir():
        return FolderData(path, contract)
    if not path.exists():
        raise BadInput(f"there is no data at {path}; give a folder of pictures or an .npz file")
    if path.suffix.lower() == ".npz":
        return _open_npz(path, contract, labels)
    if path.suffix.lower() in SUFFIXES:
        return FolderData(path.parent, contract, [path])
    raise BadInput(
        f"{path} is no data set: give a folder of pictures, one picture ({', '.join(sorted(SUFFIXES))}) or an .npz file"
    )


def _open_npz(path: Path, contract: InputContract, labels: Sequence[str] | None) -> Data:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise BadInput(f"{path} cannot be read as .npz: {error}") from error
    images = next((arrays[k] for k in ("images", "inputs", "x", "X", "data") if k in arrays), None)
    if images is None:
        raise BadInput(f"{path} has no array 'images'; it holds {', '.join(arrays) or 'nothing'}")
    truth = next((arrays[k] for k in ("labels", "targets", "y") if k in arrays), None)
    names = [str(n) for n in arrays["names"]] if "names" in arrays else None
    own = [str(n) for n in arrays["classes"]] if "classes" in arrays else None
    return ArrayData(path.name, contract, images, truth, own or labels, names)


class FolderData:
    """Pictures below a folder, in the order of their paths; the first folder level names the classes."""

    def __init__(self, folder: Path, contract: InputContract, files: Sequence[Path] | None = None) -> None:
        self.name = files[0].name if files else (folder.name or str(folder))
        self._folder, self._contract = folder, contract
        found = files or (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        self._files = sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(folder).as_posix())
        if not self._files:
            raise BadInput(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        parts = [] if files else [p.relative_to(folder).parts for p in self._files]
        self.classes = tuple(sorted({p[0] for p in parts if len(p) > 1}))
        self._number = {name: n for n, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._files)

    def label(self, index: int) -> tuple[str, int | None]:
        relative = self._files[index].relative_to(self._folder)
        return relative.as_posix(), self._number.get(relative.parts[0]) if len(relative.parts) > 1 else None

    def read(self, index: int) -> NDArray[Any]:
        return read_picture(self._files[index], self._contract)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self._files:
            stat = file.stat()
            digest.update(f"{file.relative_to(self._folder).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class ArrayData:
    """Inputs held in one array, (N, *shape); pictures also as (N, H, W) or (N, H, W, C), of any size when uint8."""

    def __init__(
        self,
        name: str,
        contract: InputContract,
        inputs: NDArray[Any],
        truth: NDArray[Any] | None = None,
        labels: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.name, self._contract = name, contract
        self._inputs = channels_first(inputs, contract, name) if contract.kind == "image" else inputs
        if len(inputs) == 0:
            raise BadInput(f"{name} holds no inputs")
        if self._inputs.dtype.kind not in "fui" or (self._inputs.dtype.kind in "ui" and self._inputs.dtype != np.uint8):
            raise BadInput(f"{name} holds {self._inputs.dtype} values; give uint8, or floats in [0, 1]")
        if self._inputs.shape[1:] != contract.shape and (self._inputs.dtype != np.uint8 or contract.kind != "image"):
            raise BadInput(
                f"{name} holds inputs of shape {list(self._inputs.shape[1:])}, the network takes {list(contract.shape)}"
            )
        self._names = names
        self._truth = None if truth is None else np.asarray(truth).reshape(-1)
        self.classes = _class_names(self._truth, labels, name)
        if self._truth is not None and len(self._truth) != len(inputs):
            raise BadInput(f"{name} has {len(inputs)} inputs and {len(self._truth)} labels")
        if names is not None and len(names) != len(inputs):
            raise BadInput(f"{name} has {len(inputs)} inputs and {len(names)} names")

    def __len__(self) -> int:
        return len(self._inputs)

    def label(self, index: int) -> tuple[str, int | None]:
        name = self._names[index] if self._names is not None else f"{self.name}[{index}]"
        return name, None if self._truth is None else int(self._truth[index])

    def read(self, index: int) -> NDArray[Any]:
        return _to_contract(self._inputs[index], self._contract, self.label(index)[0])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str((self._inputs.shape, self._inputs.dtype.str)).encode())
        digest.update(np.ascontiguousarray(self._inputs).data)
        if self._truth is not None:
            digest.update(np.ascontiguousarray(self._truth).data)
        digest.update(json.dumps([self.classes, None if self._names is None else list(self._names)]).encode())
        return digest.hexdigest()


class ItemData:
    """A torch dataset, or any sequence: items are inputs or (input, class) pairs; inputs are arrays, tensors, PIL images or files."""

    def __init__(self, items: Any, contract: InputContract, labels: Sequence[str] | None) -> None:
        self.name = getattr(items, "name", None) or type(items).__name__
        self._items, self._contract = items, contract
        if len(items) == 0:
            raise BadInput(f"{self.name} holds no inputs")
        own = getattr(items, "classes", None)
        self.classes = tuple(map(str, own)) if own else ()
        if not self.classes and _pair(items[0])[1] is not None:
            self.classes = tuple(labels or ())

    def __len__(self) -> int:
        return len(self._items)

    def label(self, index: int) -> tuple[str, int | None]:
        item, truth = _pair(self._items[index])
        name = Path(item).name if isinstance(item, str | Path) else f"{self.name}[{index}]"
        return name, truth if truth is not None and 0 <= truth < len(self.classes) else None

    def read(self, index: int) -> NDArray[Any]:
        item, _ = _pair(self._items[index])
        if isinstance(item, str | Path | Image.Image):
            return read_picture(item, self._contract)
        array = item.detach().cpu().numpy() if hasattr(item, "detach") else np.asarray(item)
        if self._contract.kind == "image":
            array = channels_first(array[None], self._contract, f"{self.name}[{index}]")[0]
        return _to_contract(array, self._contract, f"{self.name}[{index}]")

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name}\0{len(self)}\0{self.classes}".encode())
        for index in sorted({0, len(self) // 2, len(self) - 1}):
            digest.update(np.ascontiguousarray(self.read(index)).data)
        return digest.hexdigest()


def _pair(item: Any) -> tuple[Any, int | None]:
    if isinstance(item, tuple | list) and len(item) == 2 and not hasattr(item[1], "shape"):
        return item[0], int(item[1])
    if isinstance(item, tuple | list) and len(item) == 2 and getattr(item[1], "shape", None) == ():
        return item[0], int(item[1])
    return (item[0] if isinstance(item, tuple | list) and len(item) == 1 else item), None


def _to_contract(one: NDArray[Any], contract: InputContract, name: str) -> NDArray[Any]:
    if one.shape != contract.shape and one.dtype == np.uint8 and contract.kind == "image" and one.shape[0] in (1, 3, 4):
        return fit(Image.fromarray(one[0] if one.shape[0] == 1 else one.transpose(1, 2, 0)), contract)
    value = one if one.dtype == np.uint8 else one.astype(np.float32)
    try:
        contract.check(value[None])
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from error
    if value.dtype != np.uint8 and not np.isfinite(value).all():
        raise BadInput(f"{name} has values that are not finite")
    return value


def _class_names(truth: NDArray[Any] | None, labels: Sequence[str] | None, name: str) -> tuple[str, ...]:
    if truth is None:
        return ()
    if truth.dtype.kind not in "ui" or (len(truth) and int(truth.min()) < 0):
        raise BadInput(f"{name}: labels are class numbers from 0, as whole numbers")
    needed = int(truth.max()) + 1 if len(truth) else 0
    if labels is not None and len(labels) >= needed:
        return tuple(map(str, labels))
    return tuple(map(str, range(needed)))

"""Model references: one module here a kind of reference, registered under the prefix it answers to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penlight.errors import BadOption, BadReference, UnknownName
from penlight.inputs import InputContract, read_contract
from penlight.models.model import Model
from penlight.registry import Registry


@dataclass(frozen=True)
class Order:
    """What a source is asked for: the text after the prefix, keyword arguments for the constructor, and what is allowed.

    `weights` is "own" (the source's trained weights), "none" (leave the network untrained, a card brings its own) or "any" (the
    structure will do when the weights cannot be had).
    """

    name: str
    options: Mapping[str, Any]
    weights: str = "own"
    trust: bool = False
    from_file: bool = False  # asked for by a file, not by the user


@dataclass(frozen=True)
class Opened:
    """What a source found. `contract` is None where it does not know what the network takes.

    `data` and `generator`: a path of data and the reference of a generator of its inputs, where the network comes with them.
    """

    network: nn.Module
    contract: InputContract | None = None
    labels: Sequence[str] | None = None
    figures: Mapping[str, Any] | None = None
    data: str | None = None
    generator: str | None = None


Source = Callable[[Order], Opened]
sources: Registry[Source] = Registry("model source", "penlight.sources")
specimens: Registry[Any] = Registry("specimen", "penlight.specimens")
_UNREAD = {".pt2": "exported programs", ".onnx": "ONNX", ".keras": "Keras"}


def load_model(
    reference: str | Path | nn.Module,
    *,
    example: Any = None,
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
    trust: bool = False,
    weights: str = "own",
    vocabulary: Any = None,
    columns: Any = None,
    input: Mapping[str, Any] | None = None,
) -> Model:
    """A model from a reference, or from a live module with an example input; see `penlight.load`."""
    again = dict(locals())
    if isinstance(reference, nn.Module):
        opened, text = Opened(reference), type(reference).__name__
    else:
        text = str(reference)
        opened = open_reference(text, options or {}, weights, trust)
    said = _said(vocabulary, columns, input)
    if said is not None:
        _nothing_ignored(said.kind, mean=mean, std=std)
    contract = _contract(opened, example, mean, std, text) if said is None else said
    _check_device(device)
    names = labels if labels is not None else opened.labels
    model = Model(opened.network, contract, names, text, opened.figures, opened.data, opened.generator)
    if not isinstance(reference, nn.Module):
        model.opening = again
    return model if device is None else model.to(pick_device(device))


def open_reference(
    text: str, options: Mapping[str, Any], weights: str = "own", trust: bool = False, from_file: bool = False
) -> Opened:
    """Read a reference: a specimen's name, `prefix:name`, or a model card's path.

    A text with a colon is a prefix and a name unless a file of that name exists; one that ends in `.toml` is a card.
    """
    path = Path(text)
    if path.suffix == ".toml":
        from penlight.models.sources.card import open_card

        return open_card(path, options, trust)
    prefix, colon, name = text.partition(":")
    if colon and prefix in sources:
        return sources[prefix](Order(name, options, weights, trust, from_file))
    if not colon and text in specimens:
        return sources["specimen"](Order(text, options, weights, trust))
    if path.suffix in _UNREAD:
        raise BadReference(
            f"{text}: {_UNREAD[path.suffix]} files are not read by this version; load the network in Python and give the module"
        )
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"):
        raise BadReference(
            f"{text} holds weights, not the network; write a model card that names both (source = …, weights = {path.name!r})"
        )
    if colon:
        raise UnknownName("kind of reference", prefix, list(sources), f"{text!r} has to be PREFIX:NAME")
    known = [*specimens, *(f"{s}:NAME" for s in sources if s != "specimen"), "CARD.toml"]
    raise UnknownName("model", text, known)


def _said(vocabulary: Any, columns: Any, given: Mapping[str, Any] | None) -> InputContract | None:
    """The contract that a vocabulary, columns or a card's `[input]` make; None if none of them is given."""
    table = dict(given or {})
    if vocabulary is not None:
        table |= {"kind": "text", "vocabulary": vocabulary}
    if columns is not None:
        if vocabulary is not None:
            raise BadReference("a network takes text or rows of a table: give vocabulary or columns, not both")
        table |= {"kind": "table", "columns": columns}
    return read_contract(table, Path()) if table else None


def _nothing_ignored(kind: str, **given: Sequence[float] | None) -> None:
    """`BadReference` for a normalisation beside a vocabulary, columns or an `input`, where it would count for nothing."""
    names = " and ".join(name for name, value in given.items() if value is not None)
    if names and kind == "text":
        raise BadReference(f"a network on text takes numbers of tokens, which are not normalised; leave out {names}")
    if names:
        where = "each of its columns, as in {'name': 'age', 'mean': 40, 'std': 12}" if kind == "table" else "input"
        raise BadReference(f"what inputs of this network are normalised by stands in {where}; give {names} there")


def _contract(
    opened: Opened, example: Any, mean: Sequence[float] | None, std: Sequence[float] | None, text: str
) -> InputContract:
    contract = opened.contract
    if contract is None:
        if example is None:
            raise BadReference(
                f"{text} does not say what input it takes; give an example input (example=x, or --input-shape 3,224,224)"
            )
        shape = tuple(int(n) for n in (example if isinstance(example, tuple | list) else example.shape[1:]))
        contract = InputContract("image" if len(shape) == 3 else "array", shape)
    changes: dict[str, Any] = {}
    if mean is not None:
        changes["mean"] = tuple(float(v) for v in mean)
    if std is not None:
        changes["std"] = tuple(float(v) for v in std)
    return replace(contract, **changes) if changes else contract


def _check_device(device: str | None) -> None:
    if device is not None and device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise UnknownName("device", device, ["auto", "cpu", "cuda", "mps"])


def pick_device(device: str | None) -> str:
    """'auto' → cuda, mps or cpu, the first that is there; a device that is not there is `BadOption`."""
    if device is None or device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadOption("device 'cuda' is not there: this torch sees no CUDA GPU; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BadOption("device 'mps' is not there; use --device cpu")
    return device

"""A model card: a TOML file that says which network, which weights and which input."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from penlight.errors import BadReference, BadWeights, UnknownName, Untrusted
from penlight.inputs import read_contract
from penlight.models.sources import Opened, open_reference

_KEYS = ("source", "weights", "options", "input", "figures", "name", "license", "description")


def open_card(path: Path, options: Mapping[str, Any], trust: bool) -> Opened:
    """Read a card, build its network and fill in its weights."""
    card = _read(path)
    merged = {**card.get("options", {}), **options}
    opened = open_reference(
        str(card["source"]), merged, "none" if "weights" in card else "own", trust, from_file=not trust
    )
    if "weights" in card:
        load_weights(opened.network, path.parent / str(card["weights"]), trust)
    contract, labels = opened.contract, opened.labels
    if "input" in card:
        table = dict(card["input"])
        labels = _labels(table.pop("labels", None), path.parent) or labels
        contract = read_contract(table, path.parent)
    if contract is None:
        raise BadReference(
            f'{path} has no [input]; say what the network takes: kind = "image", shape = [3, 224, 224], mean, std'
        )
    return replace(opened, contract=contract, labels=labels, figures=card.get("figures"))


def _read(path: Path) -> dict[str, Any]:
    try:
        card = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BadReference(f"there is no model card {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadReference(f"{path} is no model card: {error}") from error
    for key in card:
        if key not in _KEYS:
            raise UnknownName("key in a model card", key, _KEYS)
    if "source" not in card:
        raise BadReference(f'{path} lacks source, the network it is about, as in source = "torchvision:squeezenet1_0"')
    return card


def _labels(value: Any, folder: Path) -> Sequence[str] | None:
    if value is None or isinstance(value, list):
        return value
    file = folder / str(value)
    try:
        text = file.read_text("utf-8")
        found = json.loads(text) if file.suffix == ".json" else text.splitlines()
        if isinstance(found, dict):
            found = [found[str(n)] for n in range(len(found))]
        return [item[-1] if isinstance(item, list) else str(item) for item in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadReference(f"labels {file} cannot be read ({error}); give a JSON list, or one label a line") from error


def load_weights(network: nn.Module, file: Path, trust: bool = False) -> None:
    """Fill the network from a .safetensors file, or with `trust` from a pickle; every key has to fit."""
    state = read_weights(file, trust)
    own = network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(state) - counters)
    unknown = sorted(set(state) - set(own))
    shapes = sorted(k for k in set(own) & set(state) if own[k].shape != state[k].shape)
    if missing or unknown or shapes:
        wrong = []
        if missing:
            wrong.append(f"{len(missing)} missing ({_some(missing)})")
        if unknown:
            wrong.append(f"{len(unknown)} that the network does not have ({_some(unknown)})")
        if shapes:
            first = ", ".join(f"{k}: file {list(state[k].shape)}, network {list(own[k].shape)}" for k in shapes[:3])
            wrong.append(f"{len(shapes)} of another shape ({first}{', …' if len(shapes) > 3 else ''})")
        raise BadWeights(
            f"{file} does not fit {type(network).__name__}: {'; '.join(wrong)}. Check source and [options]"
        )
    network.load_state_dict(state, strict=not counters)


def read_weights(file: Path, trust: bool) -> dict[str, Tensor]:
    """The tensors of a weights file by name."""
    if not file.is_file():
        raise BadWeights(f"there is no weights file {file}")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise BadWeights(f"{file} is cut off or no safetensors file ({error}); fetch it again") from error
    if not trust:
        raise Untrusted(
            f"{file} is a pickle, which can run code when read; convert it to .safetensors, or say --trust if you know where it is from"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may raise anything
        raise BadWeights(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    state = state.state_dict() if isinstance(state, nn.Module) else state
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BadWeights(f"{file} holds a {type(state).__name__}, not a mapping of names to tensors")
    return dict(state)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")

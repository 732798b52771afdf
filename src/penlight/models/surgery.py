"""Units taken out of a network's weights, on a copy: held at a value, or cut out where the architecture allows it.

`places` says where the rest of a network sees a layer's units; what a `Patch` does there for a pass, `fixed` and `prune` write into
weights for good.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from penlight.errors import BadUnit, BadWeights, CannotRun, ModelMismatch
from penlight.models.layers import run
from penlight.models.model import Model
from penlight.models.places import (
    CLAMPS,
    DROPS,
    POOLS,
    SUMS,
    Patch,
    Place,
    Step,
    Trace,
    places,
    rectifier,
    run_patched,
    trace,
)
from penlight.models.probe import first_tensor, split_call, undisturbed
from penlight.models.sources.card import load_weights

_TOLERANCE = 1e-4  # of the largest output: what pruning may change by rounding
_ZERO_STAYS = ("relu", "relu6", "tanh", "hardswish", "gelu", "silu", "elu", "leaky_relu", "mish", "celu")
Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def fixed(model: Model, values: Mapping[str, Mapping[int, float]]) -> Model:
    """A copy in which units always put out a value, written into the weights: `{"conv2": {7: 0.0}}`.

    Raises `CannotRun` where weights cannot say it: another function follows than a clamp, or there is no bias to hold the value.
    """
    twin = _twin(model)
    found = places(model, values)
    log, _ = trace(twin, model.example(2), values)
    with torch.no_grad():
        for path, held in values.items():
            _check_units(model, path, held)
            _fix(_Cutter(twin, log, model).weighted(path), _norms(twin, log, path), found[path], held)
    return Model(twin, model.contract, model.labels, f"{model.reference} with units held")


def _fix(module: Weighted, norms: Sequence[nn.Module], place: Place, held: Mapping[int, float]) -> None:
    limits = place.rectifier
    for unit, value in held.items():
        clamped = limits is None or limits.name in ("relu", "relu6", *CLAMPS)
        inside = limits is None or (
            (limits.low is None or value >= limits.low) and (limits.high is None or value <= limits.high)
        )
        last = norms[-1] if norms else module
        bias = last.bias
        if not clamped or not inside or (not isinstance(bias, Tensor) and value != 0) or len(norms) > 1:
            raise CannotRun(f"{place.path}:{unit} cannot be held at {value:g} by its weights; ablate it instead")
        for one in (module, *norms):
            if isinstance(one.weight, Tensor):
                one.weight[unit] = 0.0
        if isinstance(module.bias, Tensor):
            module.bias[unit] = 0.0
        if isinstance(bias, Tensor):
            bias[unit] = value


def _norms(network: nn.Module, log: Trace, path: str) -> list[nn.Module]:
    """The BatchNorms that alone read a layer's output, one after another."""
    tensor, since = log.outputs[path]
    found = []
    while len(readers := log.consumers(tensor, since)) == 1 and readers[0][1].name == "batch_norm":
        number, step = readers[0]
        found.append(_norm_of(network, step))
        tensor, since = step.made, number + 1
    return found


def _norm_of(network: nn.Module, step: Step) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(
            module.running_mean is one for one in step.given
        ):
            return module
    raise CannotRun("a normalisation without a BatchNorm module follows the layer; it cannot be cut")


def prunable(model: Model, paths: Iterable[str]) -> dict[str, str]:
    """Layer → why its units cannot be cut out of the weights; '' where they can."""
    chosen = list(paths)
    log, _ = trace(model.network, model.example(2), chosen)
    cutter = _Cutter(model.network, log, model)
    told = {}
    for path in chosen:
        try:
            cutter.cuts(path)
            told[path] = ""
        except CannotRun as error:
            told[path] = str(error)
    return told


def prune(
    model: Model,
    removed: Mapping[str, Iterable[int]],
    *,
    means: Mapping[str, Sequence[float]] | None = None,
    scaled: Mapping[str, Mapping[int, tuple[int, float]]] | None = None,
) -> Model:
    """A smaller copy without some units: `prune(model, {"conv2": [7, 9]})`.

    Weights of the layer, of a BatchNorm after it and of the layers that read it are sliced. The copy is checked: its outputs must be
    those of the network with the units held at zero where the rest sees them. With `means`, one value a unit of a layer, they are held
    at those, and the readers' biases take it over. `scaled` maps a unit to (another, factor) that it is a multiple of: the readers
    take the other one more. Raises `CannotRun` with the reason where the architecture does not allow it.
    """
    chosen = {path: tuple(sorted(set(units))) for path, units in removed.items() if tuple(units)}
    for path, units in chosen.items():
        _check_units(model, path, units)
        if len(units) >= model.layers[path].units:
            raise CannotRun(f"all units of layer {path!r} would be cut; keep at least one")
    twin = _twin(model)
    log, _ = trace(twin, model.example(2), chosen)
    cutter = _Cutter(twin, log, model)
    plans = {path: cutter.cuts(path) for path in chosen}
    patches = {}
    for path, units in chosen.items():
        values = None if means is None or path not in means else tuple(float(means[path][u]) for u in units)
        patches[path] = Patch(units, values, (scaled or {}).get(path, {}))
    with torch.no_grad():
        for path, plan in plans.items():
            plan.hand_over(patches[path])
        for path, plan in plans.items():
            plan.slice(chosen[path], model.layers[path].units)
    _verify(model, twin, patches)
    return Model(twin, model.contract, model.labels, f"{model.reference} pruned")


def open_pruned(model: Model, file: str | Path) -> Model:
    """The smaller network that was written to `file` from `model`; beside it lies the .json that says which units were kept.

    Raises `BadWeights` if either is missing or damaged, `ModelMismatch` if it was made from another network.
    """
    file = Path(file)
    try:
        about = json.loads(file.with_suffix(".json").read_text("utf-8"))
        kept, digest = {str(path): set(units) for path, units in about["kept"].items()}, about["hash"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{file.with_suffix('.json')} does not say which units {file.name} kept ({error})") from error
    if digest != model.hash:
        raise ModelMismatch(f"{file} was pruned from another network than {model.reference}; open that one")
    removed = {path: [u for u in range(model.layer(path).units) if u not in units] for path, units in kept.items()}
    small = prune(model, removed)
    load_weights(small.network, file)
    return Model(small.network, model.contract, model.labels, f"{model.reference} pruned")


def _verify(model: Model, twin: nn.Module, patches: Mapping[str, Patch]) -> None:
    x, found = model.example(3), places(model, patches)
    with undisturbed(model.network), undisturbed(twin), torch.no_grad():
        expected = first_tensor(run_patched(model.network, found, patches, x.clone()))
        try:
            given = first_tensor(run(twin, x.clone()))
        except CannotRun as error:
            raise CannotRun(
                f"without these units the network does not run ({error}); it has their number written into its code"
            ) from error
    if expected is None or given is None or expected.shape != given.shape:
        raise CannotRun(
            "without these units the network puts out another shape; it has their number written into its code"
        )
    scale = max(float(expected.abs().max()), 1.0)
    if not float((expected - given).abs().max()) <= _TOLERANCE * scale:
        raise CannotRun(
            "the network without these units does not put out what it does with them silenced; they cannot be cut"
        )


def _twin(model: Model) -> nn.Module:
    try:
        twin = copy.deepcopy(model.network)
    except Exception as error:  # a module may hold anything
        raise CannotRun(f"the network cannot be copied ({type(error).__name__}: {error})") from error
    for module in twin.modules():  # slices are written through views, which channels-last weights do not allow
        for value in module.parameters(recurse=False):
            value.data = value.data.contiguous()
    return twin


def _check_units(model: Model, path: str, units: Iterable[int]) -> None:
    count = model.layer(path).units
    for unit in units:
        if not 0 <= unit < count:
            raise BadUnit(f"layer {path!r} has units 0 to {count - 1}; there is no {unit}")


@dataclass
class _Cuts:
    """What has to be sliced so that units of one layer go: the layer, norms after it, and the readers with columns a unit."""

    module: Weighted
    norms: list[nn.Module]
    readers: list[tuple[Weighted, int]]

    def hand_over(self, patch: Patch) -> None:
        """Let the readers' weights and biases take over what the units that go said."""
        for reader, columns in self.readers:
            weight = _by_unit(reader.weight, columns)
            for unit, (other, factor) in patch.scaled.items():
                weight[:, other] += factor * weight[:, unit]
            if patch.values is None or not any(patch.values):
                continue
            padded = not isinstance(reader, nn.Linear) and any(reader.padding) and reader.padding != "valid"
            if padded or reader.bias is None:
                raise CannotRun(
                    "a reader of the layer pads its input or has no bias, so it cannot take over the mean; use zeros"
                )
            held = torch.tensor(patch.values, dtype=weight.dtype, device=weight.device)
            index = [n for n, u in enumerate(patch.units) if u not in patch.scaled]
            units = [patch.units[n] for n in index]
            reader.bias += (weight[:, units].flatten(2).sum(2) * held[index]).sum(1)

    def slice(self, units: Sequence[int], count: int) -> None:
        """Drop the units' rows and columns."""
        kept = torch.tensor([u for u in range(count) if u not in set(units)], device=self.module.weight.device)
        for name in ("weight", "bias"):
            _keep(self.module, name, kept)
        setattr(self.module, "out_features" if isinstance(self.module, nn.Linear) else "out_channels", len(kept))
        for norm in self.norms:
            for name in ("weight", "bias", "running_mean", "running_var"):
                _keep(norm, name, kept)
            norm.num_features = len(kept)  # type: ignore[assignment]
        for reader, columns in self.readers:
            weight = _by_unit(reader.weight, columns)[:, kept]
            reader.weight = nn.Parameter(weight.flatten(1, 2).clone(), reader.weight.requires_grad)
            setattr(reader, "in_features" if isinstance(reader, nn.Linear) else "in_channels", len(kept) * columns)


def _by_unit(weight: Tensor, columns: int) -> Tensor:
    """(O, units · columns, …) → (O, units, columns, …), a view."""
    return weight.view(len(weight), -1, columns, *weight.shape[2:])


def _keep(module: nn.Module, name: str, kept: Tensor) -> None:
    value = getattr(module, name)
    if isinstance(value, nn.Parameter):
        setattr(module, name, nn.Parameter(value[kept].clone(), value.requires_grad))
    elif isinstance(value, Tensor):
        setattr(module, name, value[kept].clone())


class _Cutter:
    """Finds what has to be sliced; raises `CannotRun` with the reason where slicing will not do."""

    def __init__(self, network: nn.Module, log: Trace, model: Model) -> None:
        self._network, self._log, self._model = network, log, model

    def weighted(self, path: str) -> Weighted:
        """The layer's module: a convolution or a dense layer that is called once and has its weights for itself."""
        module = self._network.get_submodule(split_call(path)[0])
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            raise CannotRun(f"layer {path!r} is a {type(module).__name__}, neither a convolution nor dense")
        calls = sum(1 for s in self._log.steps if any(one is module.weight for one in s.given) and s.name in SUMS)
        if calls != 1 or (not isinstance(module, nn.Linear) and module.groups != 1):
            raise CannotRun(
                f"layer {path!r} is called {calls} times" if calls != 1 else f"layer {path!r} is a grouped convolution"
            )
        return module

    def cuts(self, path: str) -> _Cuts:
        plan = _Cuts(self.weighted(path), [], [])
        tensor, since = self._log.outputs[path]
        self._follow(path, plan, tensor, since, 1 if not isinstance(plan.module, nn.Linear) else tensor.ndim - 1, 1)
        return plan

    def _follow(self, path: str, plan: _Cuts, tensor: Tensor, since: int, axis: int, columns: int) -> None:
        readers = self._log.consumers(tensor, since)
        if not readers:
            raise CannotRun(f"the units of {path!r} are part of what the network puts out")
        for number, step in readers:
            made = step.made
            if step.name in SUMS and step.given[0] is tensor:
                plan.readers.append((self._reader(path, step, tensor, axis), columns))
                continue
            if step.name == "batch_norm" and axis == 1 and columns == 1:
                plan.norms.append(_norm_of(self._network, step))
            elif step.given[0] is not tensor or len(step.given) > 1:
                raise CannotRun(f"the units of {path!r} meet others in a call of {step.name}")
            elif _flattens(step, tensor, axis):
                columns, axis = columns * int(tensor[0, 0].numel()), 1
            elif not _keeps_units(step, tensor, axis):
                raise CannotRun(
                    f"the units of {path!r} go into a call of {step.name}, after which they cannot be told apart"
                )
            self._follow(path, plan, made, number + 1, axis, columns)

    def _reader(self, path: str, step: Step, tensor: Tensor, axis: int) -> Weighted:
        right = axis == tensor.ndim - 1 if step.name == "linear" else axis == 1
        for name, module in self._network.named_modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and any(
                module.weight is g for g in step.given
            ):
                if right:
                    return self.weighted(name)
                break
        raise CannotRun(f"the units of {path!r} are read by a call of {step.name} whose weights cannot be sliced")


def _flattens(step: Step, tensor: Tensor, axis: int) -> bool:
    named = step.name in ("flatten", "view", "reshape", "squeeze")
    return named and axis == 1 and step.made.shape == (len(tensor), tensor[0].numel())


def _keeps_units(step: Step, tensor: Tensor, axis: int) -> bool:
    """Whether the call works on each unit alone and leaves a silent one silent; a rectifier right after the layer need not."""
    if rectifier(step) is not None or step.name in DROPS:
        return True
    whole = axis == 1 and step.made.shape[:2] == tensor.shape[:2]
    return whole and step.name in (*POOLS, "mean", "sum", "squeeze", *_ZERO_STAYS)

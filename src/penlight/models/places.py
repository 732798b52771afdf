"""Where the rest of a network sees a layer's units, and passes in which they are changed there.

That is after the BatchNorm and the rectifier that follow the layer, whether these are modules or calls in `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from penlight.errors import CannotRun
from penlight.models.layers import run, units_first
from penlight.models.model import Model
from penlight.models.probe import LOGITS, Probe, first_tensor, undisturbed

_SOFT = ("sigmoid", "tanh", "hardsigmoid", "hardswish", "gelu", "silu", "elu", "leaky_relu", "mish", "softplus", "celu")
CLAMPS = ("hardtanh", "clamp", "clip", "clamp_min", "threshold")
POOLS = tuple(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3))
DROPS = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_dropout",
    "alpha_dropout",
    "contiguous",
    "identity",
)
SUMS = ("conv1d", "conv2d", "conv3d", "linear")
_LIMITS = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


@dataclass(frozen=True)
class Rectifier:
    """The pointwise function that follows a layer: its lower and upper limit, None where it has none.

    `hard`: below zero it puts out exactly zero, so that a unit that is never above zero is never heard.
    """

    name: str
    low: float | None
    high: float | None
    hard: bool


@dataclass(frozen=True)
class Place:
    """Where the rest of the network sees a layer's units: after the calls `steps`, the last of which is the rectifier if there is one.

    `macs` and `room`: multiply-adds, and bytes of the largest map, of what runs after the layer for one input.
    """

    path: str
    layout: str
    steps: tuple[str, ...] = ()
    rectifier: Rectifier | None = None
    macs: float = 0.0
    room: float = 0.0


@dataclass(frozen=True)
class Step:
    """One call of a torch function that made a tensor: what went in, what came out, its multiply-adds for the batch."""

    name: str
    given: tuple[Tensor, ...]
    made: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    macs: float


class Trace(TorchFunctionMode):
    """Writes down every call of one pass; holds all its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.outputs: dict[str, tuple[Tensor, int]] = {}  # of layers, and the number of steps before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = first_tensor(output)
        if made is not None:
            given = tuple(tensors([*args, *(kwargs or {}).values()]))
            name = call_name(func)
            self.steps.append(Step(name, given, made, args, kwargs or {}, _macs(name, given, made)))
        return output

    def reader(self, path: str) -> Callable[[Tensor], None]:
        """Notes the output of a layer."""
        return lambda output: self.outputs.update({path: (output, len(self.steps))})

    def consumers(self, tensor: Tensor, since: int) -> list[tuple[int, Step]]:
        """Later calls that read the tensor, with their numbers; only the first one if that writes into it."""
        found = []
        for number in range(since, len(self.steps)):
            step = self.steps[number]
            if any(one is tensor for one in step.given):
                found.append((number, step))
                if step.made is tensor:
                    break
        return found


def trace(network: nn.Module, example: Tensor, paths: Iterable[str]) -> tuple[Trace, Tensor]:
    """One pass of `example` (N, *shape), written down, and its output."""
    log = Trace()
    wanted = {path: log.reader(path) for path in paths if path != LOGITS}
    with undisturbed(network), torch.no_grad():
        with Probe(network, wanted, cut=False) as probe, log:
            output = first_tensor(run(probe, example.clone()))  # type: ignore[arg-type]
    if output is None:
        raise CannotRun("the network puts out no tensor")
    return log, output


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, and in lists and tuples of them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def call_name(func: Any) -> str:
    """'relu' for every spelling of it, in place or not."""
    return str(getattr(func, "__name__", "")).strip("_")


def _macs(name: str, given: Sequence[Tensor], made: Tensor) -> float:
    if name in SUMS and len(given) > 1:
        return made.numel() * given[1].numel() / max(len(given[1]), 1)
    if name in ("matmul", "bmm", "mm", "addmm") and len(given) > 1:
        return made.numel() * float(given[-2].shape[-1])
    return 0.0


def macs(model: Model) -> float:
    """Multiply-adds of one input in convolutions, dense layers and matrix products."""
    log, _ = trace(model.network, model.example(1), ())
    return sum(step.macs for step in log.steps)


def places(model: Model, paths: Iterable[str], network: nn.Module | None = None) -> dict[str, Place]:
    """Where each layer's units are seen, and what running the network from there on takes, from one pass."""
    chosen = list(paths)
    log, _ = trace(network or model.network, model.example(2), chosen)
    found = {}
    for path in chosen:
        output, since = log.outputs[path]
        later = log.steps[since:]
        room = max(one.numel() for one in (output, *(step.made for step in later))) * output.element_size() / 2
        found[path] = replace(
            _place(log, path, model.layers[path].layout), macs=sum(step.macs for step in later) / 2, room=room
        )
    return found


def _place(log: Trace, path: str, layout: str) -> Place:
    tensor, since = log.outputs[path]
    own = next((s for s in reversed(log.steps[:since]) if s.made is tensor), None)
    if own is not None and (limits := rectifier(own)) is not None:
        return Place(path, layout, (), limits)
    names: list[str] = []
    sure = 0
    while len(readers := log.consumers(tensor, since)) == 1 and readers[0][1].given[0] is tensor:
        number, step = readers[0]
        names.append(step.name)
        if (limits := rectifier(step)) is not None:
            return Place(path, layout, tuple(names), limits)
        if step.name not in ("batch_norm", *DROPS, *POOLS):
            break
        if step.name not in POOLS:
            sure = len(names) if sure == len(names) - 1 else sure
        tensor, since = step.made, number + 1
    return Place(path, layout, tuple(names[:sure]))


def rectifier(step: Step) -> Rectifier | None:
    """The pointwise function a call is, if it is one of those a layer is followed by."""
    name, given = step.name, dict(step.kwargs)
    if name in ("relu", "relu6"):
        return Rectifier(name, 0.0, 6.0 if name == "relu6" else None, True)
    if name in _SOFT:
        low, high = _LIMITS.get(name, (None, None))
        return Rectifier(name, low, high, False)
    if name not in CLAMPS:
        return None
    values = [value for value in step.args[1:3] if not isinstance(value, bool)]
    if name == "threshold":
        return Rectifier("relu", 0.0, None, True) if values == [0, 0] else None
    first = given.get("min_val", given.get("min", values[0] if values else -1.0 if name == "hardtanh" else None))
    second = given.get(
        "max_val", given.get("max", values[1] if len(values) > 1 else 1.0 if name == "hardtanh" else None)
    )
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return None
    bottom, top = (None if v is None else float(v) for v in (first, second))
    usual: dict[tuple[float | None, float | None], str] = {(0.0, None): "relu", (0.0, 6.0): "relu6"}
    return Rectifier(usual.get((bottom, top), name), bottom, top, bottom == 0.0)


Visit = Callable[[str, Tensor], Tensor | None]  # path, after the rectifier
Earlier = Callable[[str, Tensor], Tensor]  # path, before the rectifier


class Following(TorchFunctionMode):
    """During a pass, calls `visit` where the rest of the network sees each layer's units; a tensor it returns takes their place.

    `earlier` is called first, with what goes into the rectifier, or where there is none with the same as `visit`; what it returns
    takes its place.
    """

    def __init__(self, places: Mapping[str, Place], visit: Visit, earlier: Earlier | None = None) -> None:
        super().__init__()
        self.places, self._visit, self._earlier = places, visit, earlier
        self._live: dict[int, tuple[Tensor, Place, int]] = {}

    def reader(self, path: str) -> Callable[[Tensor], Tensor | None]:
        """What the probe calls with the layer's own output."""

        def read(output: Tensor) -> Tensor | None:
            place = self.places[path]
            if place.steps:
                self._live[id(output)] = (output, place, 0)
                return None
            with torch._C.DisableTorchFunction():  # what is read is no part of the pass
                changed = output if self._earlier is None else self._earlier(path, output)
                after = self._visit(path, changed)
            return after if after is not None else None if changed is output else changed

        return read

    def readers(self, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a probe has to call with the layers' own outputs, and `wanted` as well."""
        found: dict[str, Any] = {path: self.reader(path) for path in self.places}
        for path, reader in (wanted or {}).items():
            found[path] = _both(found[path], reader) if path in found else reader
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("input")
        found = self._live.get(id(first))
        if found is None or found[0] is not first or call_name(func) != found[1].steps[found[2]]:
            return func(*args, **kwargs)
        del self._live[id(first)]
        _, place, number = found
        last = number + 1 == len(place.steps)
        if last and place.rectifier is not None:
            changed = first if self._earlier is None else self._earlier(place.path, first)
            output = func(changed, *args[1:], **kwargs) if args else func(**{**kwargs, "input": changed})
        else:
            output = func(*args, **kwargs)
            if last and self._earlier is not None:
                output = self._earlier(place.path, output)
        if not last:
            self._live[id(output)] = (output, place, number + 1)
            return output
        after = self._visit(place.path, output)
        return output if after is None else after


def pass_through(
    network: nn.Module, follow: Following, x: Tensor, wanted: Mapping[str, Any] | None = None, cut: bool = False
) -> Any:
    """One pass with `follow` at work; `wanted` are further readers, as `Probe` takes them."""
    with Probe(network, follow.readers(wanted), cut=cut) as probe, follow:
        return run(probe, x)  # type: ignore[arg-type]


def _both(
    first: Callable[[Tensor], Tensor | None], second: Callable[[Tensor], Any]
) -> Callable[[Tensor], Tensor | None]:
    def read(output: Tensor) -> Tensor | None:
        changed = first(output)
        second(output if changed is None else changed)
        return changed

    return read


@dataclass(frozen=True)
class Patch:
    """A change of some units of a layer where the rest of the network sees them.

    units   their indices
    values  what they are held at, one each; zeros if None
    scaled  unit → (other unit, factor): it is `factor` times the other one instead
    mixed   unit → (other units, their coefficients, constant): before the rectifier it is that sum instead
    """

    units: tuple[int, ...]
    values: tuple[float, ...] | None = None
    scaled: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    mixed: Mapping[int, tuple[tuple[int, ...], tuple[float, ...], float]] = field(default_factory=dict)

    def after(self, output: Tensor, layout: str) -> Tensor:
        """The output (laid out as `layout`) after the rectifier with the change, a copy."""
        held = [(n, u) for n, u in enumerate(self.units) if u not in self.mixed]
        if not held:
            return output
        changed = output.clone()
        whole, source = units_first(changed, layout), units_first(output, layout)
        for n, u in held:
            if u in self.scaled:
                other, factor = self.scaled[u]
                whole[:, u] = source[:, other] * factor
            else:
                whole[:, u] = 0.0 if self.values is None else self.values[n]
        return changed

    def before(self, given: Tensor, layout: str) -> Tensor:
        """The rectifier's input with the change; the tensor itself where nothing is mixed."""
        if not self.mixed:
            return given
        changed = given.clone()
        whole, source = units_first(changed, layout), units_first(given, layout)
        for u, (others, factors, constant) in self.mixed.items():
            whole[:, u] = (
                sum((source[:, o] * f for o, f in zip(others, factors, strict=True)), torch.zeros(())) + constant
            )
        return changed


def run_patched(network: nn.Module, places: Mapping[str, Place], patches: Mapping[str, Patch], x: Tensor,
                wanted: Mapping[str, Any] | None = None) -> Any:  # fmt: skip
    """The network's output with the patches in force."""
    follow = Following(
        {path: places[path] for path in patches},
        lambda path, after: patches[path].after(after, places[path].layout),
        lambda path, before: patches[path].before(before, places[path].layout),
    )
    return pass_through(network, follow, x, wanted)


def rectifier_names() -> tuple[str, ...]:
    """Names of the pointwise functions known here."""
    return ("relu", "relu6", *_SOFT, *CLAMPS)

"""The layers of a network as they run: which can be read, what they put out, and how their units lie in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.models.probe import LOGITS, SoftmaxWatch, first_tensor, listening, undisturbed

_LAST_AXIS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN)
_FIRST_AXIS = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_SPATIAL = {3: "L", 4: "HW", 5: "DHW"}


@dataclass(frozen=True)
class ReceptiveField:
    """What a unit in the middle of the map sees of the input, an entry an input axis: `size` and `stride` in pixels."""

    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A module's output, at one of its calls.

    `shape` is one input's output, without the batch axis; `layout` names all axes with N for the batch and C for the units;
    `alias_of` is the earlier layer that holds the very same values (a container and its last child, a dropout and its input).
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    layout: str
    parameters: int
    alias_of: str | None = None
    inputs: tuple[str, ...] = ()

    @cached_property
    def axis(self) -> int:
        """The axis of the units in the output, batch axis counted; -1 where the output is one number an input."""
        return self.layout.find("C")

    @cached_property
    def units(self) -> int:
        """Number of units."""
        return self.shape[self.axis - 1] if self.axis > 0 else 1

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the map's axes, () for neurons."""
        return tuple(n for a, n in enumerate(self.shape, 1) if a != self.axis) if self.axis > 0 else ()

    def units_first(self, output: Tensor) -> Tensor:
        """The output as (N, units, *positions), a view."""
        return units_first(output, self.layout)


def units_first(output: Tensor, layout: str) -> Tensor:
    """`output`, laid out as `layout`, as (N, units, *positions), a view."""
    axis = layout.find("C")
    if axis < 0:
        return output.unsqueeze(1)
    batch = layout.find("N")  # not the first where a network on text puts time there
    return output.movedim((batch, axis), (0, 1)) if batch > 0 else output.movedim(axis, 1)


@dataclass(frozen=True)
class Anatomy:
    """What one pass shows: the layers in order of execution, and how the output comes about.

    `class_layer` is the layer that holds the classes' scores before softmax (`LOGITS` if no module puts them out), None where the
    output is not (N, classes); `probabilities` whether the network itself ends in a softmax, `log_probabilities` in a log-softmax.
    """

    layers: tuple[Layer, ...]
    class_layer: str | None
    probabilities: bool
    log_probabilities: bool
    output_shape: tuple[int, ...]


@dataclass
class _Seen:
    layer: Layer
    tensor: Tensor
    version: int
    module: nn.Module


class _Recorder:
    """Listens to one pass and notes a `Layer` for every tensor a module puts out.

    `text` is (N, T) of the example, where the input is text: axes are then told by their sizes.
    """

    def __init__(self, network: nn.Module, ndim: int, text: tuple[int, int] | None = None) -> None:
        self.text = text
        self.names = {module: name for name, module in network.named_modules() if name}
        self.ndim, self.seen, self.calls = ndim, [], {}  # type: int, list[_Seen], dict[nn.Module, int]
        self._before: list[int] = []

    def before(self, module: nn.Module, inputs: Any) -> None:
        tensor = first_tensor(inputs)
        self._before.append(-1 if tensor is None else tensor._version)

    def after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        version, tensor = self._before.pop(), first_tensor(output)
        if tensor is None or module not in self.names or tensor.ndim == 0 or not tensor.is_floating_point():
            return
        self.calls[module] = number = self.calls.get(module, 0) + 1
        path = self.names[module] + (f"#{number}" if number > 1 else "")
        if self.text is not None and text_layout(tensor, self.text) is None:
            return
        given = [t for t in _tensors(inputs) if t.ndim]
        read = tuple(dict.fromkeys(s.layer.path for t in given if (s := self._producer(t)) is not None))
        layout = self._layout(module, tensor, given)
        layer = Layer(
            path,
            type(module).__name__,
            _without_batch(tensor, layout),
            layout,
            sum(p.numel() for p in module.parameters()),
            self._alias(module, tensor, given, version),
            read,
        )
        self.seen.append(_Seen(layer, tensor, tensor._version, module))

    def _producer(self, tensor: Tensor) -> _Seen | None:
        return next((s for s in reversed(self.seen) if same_memory(s.tensor, tensor)), None)

    def _alias(self, module: nn.Module, tensor: Tensor, given: list[Tensor], version: int) -> str | None:
        earlier = self._producer(tensor)
        if earlier is None or earlier.version != tensor._version or earlier.layer.shape != tuple(tensor.shape[1:]):
            return None
        inside = any(earlier.module is child for child in module.modules())
        passed_on = bool(given) and same_memory(given[0], tensor) and version == tensor._version
        return (earlier.layer.alias_of or earlier.layer.path) if inside or passed_on else None

    def _layout(self, module: nn.Module, tensor: Tensor, given: list[Tensor]) -> str:
        if self.text is not None:
            return text_layout(tensor, self.text) or ""
        ndim = tensor.ndim
        if ndim <= 2 or ndim > 5:
            return {1: "N", 2: "NC"}.get(ndim, "N" + "D" * (ndim - 2) + "C")
        first, last = f"NC{_SPATIAL[ndim]}", f"N{_SPATIAL[ndim]}C"
        if isinstance(module, _LAST_AXIS) or type(module) is nn.LayerNorm:
            return last
        if isinstance(module, _FIRST_AXIS):
            return first
        for earlier in reversed(self.seen):
            if same_memory(earlier.tensor, tensor) and earlier.tensor.ndim == ndim:
                return earlier.layer.layout
        source = next((s for t in given if (s := self._producer(t)) is not None and s.tensor.ndim == ndim), None)
        if source is not None:
            return self._moved(source, tensor, first, last)
        turned = next(
            (found for t in given if t.shape == tensor.shape and (found := self._turned(t)) is not None), None
        )
        if turned is not None:
            return turned
        shaped = getattr(module, "normalized_shape", None)
        if shaped and len(shaped) == 1 and tensor.shape[-1] == shaped[0] != tensor.shape[1]:
            return last
        near = next((s for s in reversed(self.seen) if s.tensor.shape == tensor.shape), None)
        if near is not None:
            return near.layer.layout
        return first if ndim == self.ndim else last

    def _turned(self, view: Tensor) -> str | None:
        """The layout of a permuted view of an earlier output: its axes are found again by size and stride."""
        axes = list(zip(view.shape, view.stride(), strict=True))
        for earlier in reversed(self.seen):
            own = list(zip(earlier.tensor.shape, earlier.tensor.stride(), strict=True))
            if view.data_ptr() == earlier.tensor.data_ptr() and sorted(own) == sorted(axes):
                layout = "".join(earlier.layer.layout[own.index(axis)] for axis in axes)
                if layout in (f"NC{_SPATIAL[view.ndim]}", f"N{_SPATIAL[view.ndim]}C"):
                    return layout
        return None

    @staticmethod
    def _moved(source: _Seen, tensor: Tensor, first: str, last: str) -> str:
        before, layout = source.tensor.shape, source.layer.layout
        if sorted(before) == sorted(tensor.shape) and before != tensor.shape:
            units = before[layout.find("C")]
            return last if tensor.shape[-1] == units else first if tensor.shape[1] == units else layout
        return layout


def text_layout(tensor: Tensor, sizes: tuple[int, int]) -> str | None:
    """The layout of a tensor that a network on text made from (N, T) tokens; None if its axes are not the texts, the steps and units."""
    batch, steps = sizes
    for layout in {2: ("NC",), 3: ("NLC", "LNC", "NCL")}.get(tensor.ndim, ()):
        own = dict(zip(layout, tensor.shape, strict=True))
        if own["N"] == batch and own.get("L", steps) == steps:
            return layout
    return None


def _without_batch(tensor: Tensor, layout: str) -> tuple[int, ...]:
    return tuple(n for letter, n in zip(layout, tensor.shape, strict=True) if letter != "N") if "N" in layout else ()


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same view of the same memory."""
    return a is b or (
        a.numel() > 0 and a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []


def anatomy(network: nn.Module, example: Tensor, text: tuple[int, int] | None = None) -> Anatomy:
    """Run the network once on `example` (N, *shape) and note every layer; `CannotRun` if it fails or no layer can be read.

    `text` is (N, T) where the example is N texts of T tokens, however it is laid out.
    """
    recorder = _Recorder(network, example.ndim, text)
    with undisturbed(network), torch.no_grad(), SoftmaxWatch() as watch:
        with listening(network, recorder.after, recorder.before):
            output = run(network, example)
    tensor = first_tensor(output)
    if tensor is None:
        raise CannotRun(
            f"the network puts out a {type(output).__name__} without a tensor; wrap it so that it returns one"
        )
    layers = tuple(seen.layer for seen in recorder.seen)
    if not layers and (tensor.ndim != 2 or text is not None):
        raise CannotRun(
            "the network has no submodule that puts out a tensor, so no layer can be read; wrap its parts in modules"
        )
    before = watch.logits(tensor)
    scores = tensor if before is None else before
    logarithm = before is not None and bool((tensor <= 1e-6).all()) and tensor.ndim == 2
    return Anatomy(
        layers,
        _class_layer(recorder.seen, scores, text),
        before is not None and not logarithm,
        logarithm,
        tuple(tensor.shape[1:]) if text is None else _without_batch(tensor, text_layout(tensor, text) or ""),
    )


def _class_layer(seen: list[_Seen], scores: Tensor, text: tuple[int, int] | None) -> str | None:
    if text is not None and scores.ndim == 3:  # of a language model: scores of the next token at every step
        own = next((s for s in seen if same_memory(s.tensor, scores) and "L" in s.layer.layout), None)
        return None if own is None else own.layer.alias_of or own.layer.path
    if scores.ndim != 2 or (text is not None and len(scores) != text[0]):
        return None
    for one in seen:
        if same_memory(one.tensor, scores) and one.version == scores._version and one.layer.layout == "NC":
            return one.layer.alias_of or one.layer.path
    flat = next(
        (s for s in reversed(seen) if s.tensor.numel() == scores.numel() and s.layer.units == scores.shape[1]), None
    )
    if flat is not None and torch.equal(flat.tensor.reshape(scores.shape), scores):
        return flat.layer.alias_of or flat.layer.path
    return LOGITS


def run(network: nn.Module, *inputs: Tensor) -> Any:
    """The network's output; what it raises becomes `CannotRun` with the input's shape."""
    try:
        return network(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CannotRun(f"the network fails on an input of shape {shapes}: {first}; check the input's shape") from error

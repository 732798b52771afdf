"""A network with its input contract, labels and layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import BadOption, BadReference, BadUnit, UnknownName
from penlight.inputs import InputContract, TextContract, batches, open_data
from penlight.models.layers import Anatomy, Layer, ReceptiveField, anatomy, run
from penlight.models.prepare import prepare
from penlight.models.probe import LOGITS, first_tensor, undisturbed, unwrap
from penlight.models.receptive import Line, lines, summary
from penlight.models.recurrent import written_out
from penlight.units import Unit


class Model:
    """A trained network, opened.

    >>> model = penlight.load("letters")                    # doctest: +SKIP
    >>> model.layers["conv2"].units                         # doctest: +SKIP
    >>> model.predict("picture.png")                        # doctest: +SKIP

    `network` is the user's own module, never changed, for text a copy on the same weights whose recurrent modules show their states and
    gates as layers (`lstm.cell_l0`); `contract` says what goes in; `labels` names the classes, or is None;
    `reference` is the text it was loaded by; `figures` what its card states about it.
    """

    def __init__(
        self,
        network: nn.Module,
        contract: InputContract,
        labels: Sequence[str] | None = None,
        reference: str = "",
        figures: Mapping[str, Any] | None = None,
        data: str | None = None,
        generator: str | None = None,
    ) -> None:
        self.text = contract if isinstance(contract, TextContract) else None
        self.network, self.contract = unwrap(network), contract
        if self.text is not None:
            self.network = written_out(self.network, self.text.batch_first)
        if any(one.is_inference() for one in (*self.network.parameters(), *self.network.buffers())):
            raise BadReference(
                f"the weights of this {type(self.network).__name__} were made inside torch.inference_mode(), where they take no"
                " gradients; make, load or copy.deepcopy the network outside it"
            )
        self.labels = None if labels is None else tuple(map(str, labels))
        self.reference = reference or type(self.network).__name__
        self.figures = dict(figures or {})
        self.data = data  # path of the data that came with a specimen
        self.generator = generator  # reference of the network that came with it and makes its inputs from codes
        self.opening: Mapping[str, Any] | None = None  # what `load_model` opens it with again; None for a live module
        if (
            self.text is not None
            and self.labels is None
            and self._anatomy.output_shape[1:] == (len(self.text.vocabulary),)
        ):
            self.labels = self.text.vocabulary  # a language model: its classes are the tokens
        if self.labels is not None and self.class_layer and len(self.labels) != self._anatomy.output_shape[-1]:
            raise BadReference(
                f"{self.reference} has {self._anatomy.output_shape[-1]} outputs and {len(self.labels)} labels; give one label an output"
            )

    def __repr__(self) -> str:
        return f"Model({self.reference!r}, {len(self.layers)} layers, input {list(self.contract.shape)})"

    @property
    def device(self) -> torch.device:
        """Where the network's parameters lie; the CPU if it has none."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Model:
        """Move the network to a device, in place; returns the model."""
        try:
            self.network.to(device)
        except (RuntimeError, AssertionError) as error:
            raise BadOption(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
        return self

    def example(self, count: int = 2) -> Tensor:
        """A fixed batch of noise as the network takes it, (count, *shape); of text, random tokens."""
        generator = torch.Generator().manual_seed(0)
        if self.text is not None:
            ids = torch.randint(len(self.text.vocabulary), (count, *self.text.shape), generator=generator)
            return self.tensor(ids.numpy())
        return torch.randn((count, *self.contract.shape), generator=generator).to(self.device)

    @cached_property
    @torch.inference_mode(False)
    def _anatomy(self) -> Anatomy:
        return anatomy(self.network, self.example(), None if self.text is None else (2, self.text.shape[0]))

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every readable layer by path, in order of execution."""
        found = {layer.path: layer for layer in self._anatomy.layers}
        if self._anatomy.class_layer == LOGITS:
            found[LOGITS] = Layer(LOGITS, "function", self._anatomy.output_shape, "NC", 0)
        return found

    @property
    def class_layer(self) -> str | None:
        """Path of the layer that holds the class scores before softmax; None if the output is not (N, classes)."""
        return self._anatomy.class_layer

    @cached_property
    def lines(self) -> Mapping[str, tuple[Line, ...]]:
        """What every position of every layer sees, an input axis at a time; nothing is said of text."""
        if self.text is not None:
            return {}
        return lines(self.network, self._anatomy.layers, self.contract.shape, self.device)

    @cached_property
    def fields(self) -> Mapping[str, ReceptiveField | None]:
        """Receptive field of every layer, size and stride in pixels; None: the whole input."""
        return {path: summary(found) for path, found in self.lines.items()}

    def box(self, path: str, position: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """(start, end) in input pixels, an entry an input axis, of what the unit at `position` sees; end exclusive, within the input."""
        positions = self.layers[path].positions
        if not position or len(position) != len(positions):
            return tuple((0, n) for n in self.contract.size)
        flat = np.ravel_multi_index(tuple(position), positions)
        return tuple((int(start), int(end)) for start, end in self.boxes(path, np.array(flat)))

    def boxes(self, path: str, flat: NDArray[Any]) -> NDArray[np.int64]:
        """(*flat.shape, axes, 2): `box` of the units at flat positions of a layer's map."""
        found, positions = self.lines.get(path, ()), self.layers[path].positions
        if not found or not positions:
            whole = np.array([(0, n) for n in self.contract.size], np.int64).reshape(-1, 2)
            return np.broadcast_to(whole, (*flat.shape, *whole.shape)).copy()
        along = np.unravel_index(flat, positions) if len(positions) == len(found) else [flat] * len(found)
        spans = [np.stack([line.first[p], line.last[p] + 1], -1) for line, p in zip(found, along, strict=True)]
        return np.stack(spans, -2)

    @cached_property
    def hash(self) -> str:
        """Hex digest of weights, structure and input contract; the same network gives the same digest in any process."""
        digest = hashlib.sha256(json.dumps([repr(self.network), asdict(self.contract), self.labels]).encode())
        for name, value in sorted(self.network.state_dict().items()):
            if isinstance(value, Tensor):
                digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def find(self, unit: str | Unit) -> list[Unit]:
        """Units by index, for an address; `layer:*` gives all of them, `class:label` the one before softmax.

        Raises `UnknownName` for a layer or label that is not there and `BadUnit` for an index or position out of range.
        """
        asked = Unit.parse(unit) if isinstance(unit, str) else unit
        if asked.label is not None:
            return [self._class_unit(asked.label)]
        layer = self.layer(asked.layer)
        if asked.index is None:
            return [Unit(asked.layer, index) for index in range(layer.units)]
        if asked.index >= layer.units:
            raise BadUnit(f"layer {asked.layer!r} has units 0 to {layer.units - 1}; there is no {asked.index}")
        where = asked.position
        if self.text is not None and where is not None and len(where) == len(layer.positions) == 1:
            return [asked]  # texts are as long as they are
        if where is not None and (
            len(where) != len(layer.positions) or any(p >= n for p, n in zip(where, layer.positions, strict=True))
        ):
            size = "×".join(map(str, layer.positions)) or "no"
            raise BadUnit(f"layer {asked.layer!r} has {size} positions; {','.join(map(str, where))} is none of them")
        return [asked]

    def layer(self, path: str) -> Layer:
        """A layer by path; `UnknownName` offers near ones."""
        if path not in self.layers:
            raise UnknownName("layer", path, list(self.layers), f"'penlight layers {self.reference}' lists them")
        return self.layers[path]

    def label(self, unit: Unit) -> str | None:
        """The class's label if the unit is one of the class scores."""
        if self.labels is None or unit.index is None or self.class_layer is None:
            return None
        same = unit.layer == self.class_layer or self.layers[unit.layer].alias_of == self.class_layer
        return self.labels[unit.index] if same else None

    def _class_unit(self, label: str) -> Unit:
        if self.class_layer is None:
            raise BadUnit(
                f"{self.reference} puts out {list(self._anatomy.output_shape)}, not one score a class; name a layer's unit instead"
            )
        count = self._anatomy.output_shape[-1]
        hits = [n for n, name in enumerate(self.labels or ()) if name == label]
        if len(hits) > 1:
            ways = " or ".join(f"'{self.class_layer}:{n}'" for n in hits)
            raise BadUnit(f"label {label!r} stands {len(hits)} times in the labels; write {ways}")
        if hits:
            return Unit(self.class_layer, hits[0])
        if label.isascii() and label.isdigit():
            if int(label) < count:
                return Unit(self.class_layer, int(label))
            raise BadUnit(f"{self.reference} has classes 0 to {count - 1}; there is no {label}")
        if self.labels is None:
            raise BadUnit(f"{self.reference} has no labels; name the class by its number, class:0 to class:{count - 1}")
        raise UnknownName("label", label, self.labels)

    def predict(self, pictures: Any, batch: int = 64) -> NDArray[np.float32]:
        """Class probabilities, (N, classes) float32.

        `pictures` is a file, a folder, several files, or (N, *shape) in [0, 1] before normalisation, or uint8; texts or rows of a table
        for networks on those. Of a language model it is the token after each text.
        """
        if isinstance(pictures, str | bytes):
            pictures = str(pictures)
        elif hasattr(pictures, "save") and hasattr(pictures, "size") and not hasattr(pictures, "shape"):
            pictures = [pictures]
        data = open_data(pictures, self.contract, self.labels)
        if self.text is not None:  # texts differ in length
            return np.concatenate([self.probabilities(data.read(n)[None]) for n in range(len(data))])
        return np.concatenate([self.probabilities(self._whole(b.inputs, b.skipped)) for b in batches(data, batch)])

    @staticmethod
    def _whole(inputs: NDArray[Any], skipped: Sequence[tuple[int, str, str]]) -> NDArray[Any]:
        from penlight.errors import BadInput

        if skipped:
            raise BadInput(skipped[0][2])
        return inputs

    def probabilities(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """`predict` for one batch (N, *shape), uint8 or in [0, 1]."""
        if self.class_layer is None:
            raise BadUnit(f"{self.reference} puts out {list(self._anatomy.output_shape)}, not one score a class")
        self.contract.check(inputs)
        with undisturbed(self.network), torch.inference_mode():
            output = first_tensor(run(self.network, self.tensor(inputs)))
            assert output is not None
            if output.ndim == 3:
                output = self.layers[self.class_layer].units_first(output)[..., -1]
            if self._anatomy.log_probabilities:
                output = output.exp()
            elif not self._anatomy.probabilities:
                output = output.softmax(1) if output.shape[1] > 1 else output.sigmoid()
        return output.float().cpu().numpy()

    def tensor(self, inputs: NDArray[Any], *, channels_last: bool = False) -> Tensor:
        """(N, *shape) uint8 or in [0, 1] → normalised float32 on the network's device.

        channels_last: pictures given as uint8 may lie in memory that way, which is how `prepared` networks take them fastest.
        """
        last = channels_last and self.contract.kind == "image" and inputs.dtype == np.uint8 and inputs.ndim == 4
        normalize = self.contract.normalize_last if last else self.contract.normalize
        return torch.from_numpy(normalize(inputs)).to(self.device)

    @torch.inference_mode(False)
    def prepared(self, keep: Sequence[str] = ()) -> nn.Module:
        """A frozen copy made for speed (BatchNorm folded, channels-last), in which the layers `keep` still put out their own values."""
        return prepare(self.network, self.example(), keep)

    def rows(self) -> list[dict[str, Any]]:
        """What `penlight layers` prints, a row a layer, in JSON's types."""
        rows = []
        for layer in self.layers.values():
            field = self.fields.get(layer.path)
            rows.append(
                {
                    "path": layer.path,
                    "kind": layer.kind,
                    "units": layer.units,
                    "shape": list(layer.shape),
                    "layout": layer.layout,
                    "receptive_field": None
                    if field is None
                    else {"size": list(field.size), "stride": list(field.stride)},
                    "parameters": layer.parameters,
                    "alias_of": layer.alias_of,
                    "inputs": list(layer.inputs),
                }
            )
        return rows

"""`torchvision:NAME` and `timm:NAME`: the model libraries, with their trained weights and what they say of the input."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import torch

from penlight.errors import BadReference, PenlightError, UnknownName
from penlight.inputs import InputContract
from penlight.models.sources import Opened, Order

# A torchvision built for another torch has no compiled operators, and without these two it cannot be imported, although no
# classification network calls them.
_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library object


def open_torchvision(order: Order) -> Opened:
    """A network of torchvision; its default weights bring labels and preprocessing."""
    models = import_torchvision().models
    if order.name not in models.list_models(module=models):
        raise UnknownName("torchvision classification model", order.name, models.list_models(module=models))
    best = models.get_model_weights(order.name).DEFAULT
    options = dict(order.options)
    chosen = options.pop("weights", best if order.weights != "none" else None)
    network = _build(lambda w: models.get_model(order.name, weights=w, **options), chosen, order, "torchvision")
    preset = best.transforms()
    side = preset.crop_size[0]
    contract = InputContract(
        "image", (3, side, side), tuple(preset.mean), tuple(preset.std), min(1.0, side / preset.resize_size[0])
    )
    return Opened(network, contract, best.meta.get("categories") if "num_classes" not in options else None)


def open_timm(order: Order) -> Opened:
    """A network of timm; its pretrained configuration brings preprocessing."""
    import_torchvision()
    timm = _import("timm")
    if order.name.partition(".")[0] not in timm.list_models() and not order.name.startswith(("hf-hub:", "local-dir:")):
        raise UnknownName("timm model", order.name, timm.list_models())
    options = dict(order.options)
    chosen = options.pop("pretrained", order.weights != "none")
    network = _build(lambda w: timm.create_model(order.name, pretrained=bool(w), **options), chosen, order, "timm")
    config = network.pretrained_cfg
    shape = tuple(config.get("input_size") or (3, 224, 224))
    contract = InputContract(
        "image",
        (options.get("in_chans", shape[0]), *shape[1:]),
        tuple(config.get("mean") or (0.5,)),
        tuple(config.get("std") or (0.5,)),
        float(config.get("crop_pct") or 0.875),
    )
    return Opened(network, contract, config.get("label_names"))


def _build(make: Any, weights: Any, order: Order, library: str) -> Any:
    """Make the network; when its weights cannot be fetched, say so, or go without them where the structure will do."""
    try:
        return make(weights)
    except PenlightError:
        raise
    except Exception as error:  # downloads fail in many ways, constructors in more
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not weights:
            raise BadReference(f"{library} cannot make {order.name!r}: {first}; check the options") from error
        if order.weights == "any":
            warnings.warn(
                f"the weights of {library}:{order.name} cannot be had ({first}); this is the untrained network",
                stacklevel=2,
            )
            return make(None)
        raise BadReference(
            f"the weights of {library}:{order.name} cannot be had ({first}); put them beside a model card with "
            f'source = "{library}:{order.name}" and weights = "FILE.safetensors"'
        ) from error


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BadReference(f"{error.name} is not installed; 'pip install penlight[{name}]' brings it") from error


def import_torchvision() -> ModuleType:
    """torchvision, also when its compiled operators do not fit the installed torch; then it warns once."""
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    try:
        return _import("torchvision")
    except (RuntimeError, OSError) as error:
        if "torchvision::" not in str(error):
            raise BadReference(f"torchvision cannot be imported: {error}") from error
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        if not _declared:
            library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for name, schema in _OPERATORS.items():
                if not hasattr(torch.ops.torchvision, name):
                    library.define(schema)  # type: ignore[no-untyped-call]
            _declared.append(library)
            warnings.warn(
                "torchvision's compiled operators do not fit this torch; classification networks do without, detection does not",
                stacklevel=2,
            )
        return _import("torchvision")

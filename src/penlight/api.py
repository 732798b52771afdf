"""The doors in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from penlight.errors import BadInput
from penlight.inputs import Data, open_data
from penlight.jobs import AtlasOptions, Outcome, plan_atlas, run_plan
from penlight.jobs.plan import chosen_layers
from penlight.jobs.run import Watch
from penlight.models import Model, load_model
from penlight.models.sources import specimens
from penlight.results import VisualizeResult
from penlight.store import Atlas
from penlight.techniques.contract import VERBS, Progress, Request, methods
from penlight.techniques.options import build, table
from penlight.units import Unit


def load(
    reference: str | Path | nn.Module,
    *,
    example: Any = None,
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
    trust: bool = False,
) -> Model:
    """Open a trained network.

    >>> model = penlight.load("letters")                                            # doctest: +SKIP
    >>> model = penlight.load("torchvision:squeezenet1_0")                          # doctest: +SKIP
    >>> model = penlight.load(my_module, example=torch.zeros(1, 3, 64, 64))         # doctest: +SKIP

    `reference` is a specimen's name, `torchvision:NAME`, `timm:NAME`, `module:package.mod:callable`, a model card (.toml), or a live
    module with an `example` input (N, *shape), of which only the shape is read. `mean` and `std` are what the network's inputs in
    [0, 1] are normalised by, where the reference does not say; `options` go to the network's constructor; `trust` lets pickled
    weights be read. The module is never changed, only moved if `device` ("auto", "cpu", "cuda", "mps") says so.

    Raises `UnknownName`, `BadReference`, `BadWeights` or `Untrusted` with what to do.
    """
    return load_model(
        reference, example=example, labels=labels, mean=mean, std=std, options=options, device=device, trust=trust
    )


def visualize(
    model: Model | str | Path,
    unit: str | Unit | Sequence[str | Unit],
    *,
    method: str = "penlight",
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> VisualizeResult:
    """Pictures that excite units most, or least with `minimize=True`.

    >>> r = penlight.visualize(model, "class:C", seeds=4)     # doctest: +SKIP
    >>> r.images.shape, r.activations.shape                   # doctest: +SKIP
    ((1, 4, 28, 28, 1), (1, 4))

    `unit` is an address or several ("conv2:7", "conv2:7@3,3", "conv2:*", "class:C"). `options` are the method's, see
    `penlight methods`. The same seed gives the same bytes on the same machine.
    """
    opened = _model(model)
    asked = [unit] if isinstance(unit, str | Unit) else list(unit)
    units = [one for text in asked for one in opened.find(text)]
    technique = build(methods["visualize"][method], options)
    result = technique.run(Request(opened, units, seed=seed, progress=progress or _silent))
    assert isinstance(result, VisualizeResult)
    return result


def survey(
    model: Model | str | Path,
    data: Any = None,
    *,
    layers: str | Sequence[str] = (),
    method: str = "stream",
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """One pass over `data`: every unit's top examples and statistics, as a `SurveyResult`.

    >>> r = penlight.survey(model, "pictures/", top=9)     # doctest: +SKIP
    >>> r.top("conv2:7").activations                     # doctest: +SKIP

    `data` is a folder of pictures, an .npz file, an array (N, *shape) in [0, 1] or uint8, or a torch dataset; a specimen brings its
    own. `layers` are paths or patterns, all by default. Another `method` gives its own kind of result: `filters` a `FiltersResult`,
    for which no data is read.
    """
    opened = _model(model)
    patterns = [layers] if isinstance(layers, str) else layers
    paths = chosen_layers(opened, patterns) if patterns else ()  # without any the method knows which
    technique = build(methods["survey"][method], options)
    found = None if data is None and opened.data is None else find_data(opened, data)
    return technique.run(Request(opened, layers=paths, data=found, seed=seed, progress=progress or _silent))


@dataclass(frozen=True)
class Built:
    """An atlas that was built: its folder, the number of tasks, and what the run did."""

    folder: Path
    tasks: int
    outcome: Outcome


def build_atlas(
    model: Model | str | Path,
    data: Any,
    folder: str | Path,
    *,
    watch: Watch | None = None,
    method: str = "penlight",
    seeds: int = 3,
    top: int = 9,
    seed: int = 0,
    layers: str | Sequence[str] = (),
    **options: Any,
) -> Built:
    """Ask every question of every unit and keep the answers in `folder`; what is there already is not asked again.

    >>> penlight.build_atlas(model, "pictures/", "atlas/")     # doctest: +SKIP

    `seeds` is the number of random starts a unit, `top` of real examples; `options` go to the synthesis method. A run that is killed
    at any moment goes on where it was when called again. Raises `ModelMismatch` if the folder holds another network's atlas,
    `BadOutput` if it holds something else or cannot be written.
    """
    opened = _model(model)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    found = find_data(opened, data)
    asked = AtlasOptions(method, seeds, top, seed=seed, layers=patterns, options=options)
    tasks = plan_atlas(opened, found, asked)
    with Atlas.create(folder) as atlas:
        atlas.claim(_header(opened))
        atlas.set_meta("data", {"name": found.name, "count": len(found), "classes": found.classes})
        atlas.set_plan([task.key for task in tasks])
        outcome = run_plan(tasks, opened, found, atlas, watch)
    return Built(Path(folder), len(tasks), outcome)


def find_data(model: Model, data: Any) -> Data:
    """The data set `data` stands for; None is the one that came with a specimen, and a specimen's name is its data."""
    if data is None:
        if model.data is None:
            raise BadInput(f"{model.reference} brings no data of its own; give a folder of pictures or an .npz file")
        data = model.data
    elif isinstance(data, str) and data in specimens and not Path(data).exists():
        data = specimens[data].DATA
    return open_data(data, model.contract, model.labels)


def method_rows() -> list[dict[str, Any]]:
    """Every registered method: verb, name, paper, summary, and its options with type, default, range and help."""
    rows = []
    for verb in VERBS:
        for name in methods[verb]:
            technique = methods[verb][name]
            summary = (technique.__doc__ or "").strip().partition("\n")[0]
            rows.append(
                {
                    "verb": verb,
                    "method": name,
                    "summary": summary,
                    "paper": technique.paper,
                    "options": table(technique),
                }
            )
    return rows


def _model(model: Model | str | Path) -> Model:
    return model if isinstance(model, Model) else load_model(model)


def _silent(done: int, of: int) -> None:
    pass


def _header(model: Model) -> dict[str, Any]:
    return {
        "reference": Path(model.reference).name if "/" in model.reference else model.reference,
        "hash": model.hash,
        "name": Path(model.reference).stem if model.reference.endswith(".toml") else model.reference,
        "kind": model.contract.kind,
        "shape": list(model.contract.shape),
        "labels": None if model.labels is None else list(model.labels),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "class_layer": model.class_layer,
        "figures": model.figures,
        "layers": model.rows(),
    }

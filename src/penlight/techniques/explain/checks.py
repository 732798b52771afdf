"""Is a map true? Three questions to it that need no one's eyes.

Deletion and insertion (Petsiuk et al. 2018): are the places it names those that the value hangs on? Sensitivity (Yeh et al. 2019): does
it stay when the input hardly changes? Randomisation (Adebayo et al. 2018): does it change when the network is another one?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from penlight.errors import CannotRun
from penlight.inputs import TableContract
from penlight.models.front import FrontContract
from penlight.models.probe import undisturbed
from penlight.results import ExplainResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.explain import aim as aims
from penlight.techniques.explain.aim import Aim
from penlight.techniques.explain.background import background
from penlight.techniques.explain.chunks import chunk_size, in_chunks
from penlight.techniques.explain.explanation import Scene, open_scene
from penlight.techniques.explain.fills import blurred, filled, token
from penlight.techniques.explain.passage import open_passage
from penlight.techniques.explain.scramble import scrambled, stages

ALIKE = 0.5  # similarity from which a map counts as the same one
_RADIUS = 0.02  # of the noise, of the input's range, as in Yeh et al.
_BLUR = 0.15  # sigma, of the shorter side, of what insertion starts from: a large letter can be read through less
_WINDOW = 7  # places a side, over which structural similarity is taken
_UPPER = 0.6  # share of the layers, from the unit down, that must change a map: the lowest see only edges, and may agree on them
_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


def check(
    technique: Technique, request: Request, result: ExplainResult, *, steps: int = 32, draws: int = 4, depth: int = 5
) -> tuple[dict[str, float | None], dict[str, NDArray[Any]]]:
    """(numbers, curves) that say whether `result`, the technique's answer to `request`, is true of the network.

    deletion, insertion      areas under the curves of the value (of a class its probability, of any other unit its value over the whole
                             input's) as places are taken away, or come back into a blurred input, in the map's order; `_random` is the
                             same for the map's own values in random places. Low deletion and high insertion are good.
    sensitivity              largest relative change of the map over `draws` inputs with noise of 2 % of the range; `noise_rank` the
                             smallest rank correlation with it
    randomisation            how alike the map stays while the weights are scrambled from the unit downwards, the mean over the steps
                             through the upper half of the layers, through all of them for a table; 1 is the same map. It is the
                             larger of two rank correlations, of the values (`_signed`) and of their magnitudes (`_absolute`); `_ssim`
                             is structural similarity.

    About 4·`steps` passes, and `draws` + `depth` further maps. None where a number cannot be had. Of a text it is what stands behind the
    network's front that gets noise and is taken away; of a row of a table, whole columns.
    """
    if request.model.contract.kind == "text":
        request = replace(open_passage(request).request, progress=request.progress)
        found = technique.run(request)
        assert isinstance(found, ExplainResult)
        result = found
    scene = open_scene(request)
    told = _told(request, draws + depth)
    quiet = replace(request, targets=[scene.aim], units=(), progress=lambda done, of: None)
    technique = _pinned(technique, result)
    with undisturbed(scene.network, freeze=True), torch.no_grad():
        numbers, curves = _by_places(scene, result, steps)
    for part in (
        _by_noise(technique, quiet, scene, result, draws, told),
        _by_scrambling(technique, quiet, scene, result, depth, told),
    ):
        numbers |= part[0]
        curves |= part[1]
    return numbers, curves


def _told(request: Request, maps: int) -> Callable[[], None]:
    """Reports to the request that one more of `maps` is made."""
    made = 0

    def one() -> None:
        nonlocal made
        made = min(made + 1, maps)
        request.progress(made, maps)

    return one


def verdict(checks: Mapping[str, float | None]) -> str:
    """One line about the randomisation test, the one that a map can fail outright; "" if it was not made."""
    found = checks.get("randomisation")
    if found is None:
        return ""
    if found >= ALIKE:
        told = f"fails: the map stays {found:.2f} alike when the weights above are scrambled: it shows the input, not the network"
    else:
        told = f"passes: the map is another one once the weights above are scrambled, {found:.2f} alike"
    return f"randomisation: {told}"


def _pinned(technique: Technique, result: ExplainResult) -> Technique:
    """The technique with the layer that it found by itself, which a changed network must not change."""
    layer = result.evidence.get("layer")
    has = any(field.name == "layer" for field in fields(technique))  # type: ignore[arg-type]
    if has and layer and getattr(technique, "layer", None) == "":
        pinned: dict[str, Any] = {"layer": layer}
        if any(field.name == "rectified" for field in fields(technique)):  # type: ignore[arg-type]
            pinned["rectified"] = "on" if "read" in result.evidence else "off"
        return replace(technique, **pinned)  # type: ignore[type-var]
    return technique


# deletion and insertion


def _by_places(
    scene: Scene, result: ExplainResult, steps: int
) -> tuple[dict[str, float | None], dict[str, NDArray[Any]]]:
    shape = _places(scene)
    rng = scene.rng("order")
    shuffled = rng.permutation(result.map.ravel()).reshape(result.map.shape)
    text = isinstance(scene.model.contract, FrontContract)
    empty = filled(scene, token(scene) if text else "zeros")
    faint = blurred(scene.x, _BLUR * min(scene.x.shape[2:])) if scene.x.ndim > 2 and not text else empty
    numbers: dict[str, float | None] = {}
    curves: dict[str, NDArray[Any]] = {}
    for name, values in (("", result.map), ("_random", shuffled)):
        order = ordered(placed(values, shape), rng)
        for kind, before, after in (("deletion", scene.x, empty), ("insertion", faint, scene.x)):
            curve = _curve(scene, order, before, after, steps)
            curves[f"{kind}_curve{name}"] = curve
            numbers[f"{kind}{name}"] = area(curve)
    curves["curve_share"] = np.linspace(0, 1, len(curve), dtype=np.float32)
    return {name: numbers[name] for name in ("deletion", "deletion_random", "insertion", "insertion_random")}, curves


def _places(scene: Scene) -> tuple[int, ...]:
    """The shape of the places that are taken away: the columns of a table, or the input's axes after the channels."""
    contract = scene.model.contract
    return (len(contract.columns),) if isinstance(contract, TableContract) else contract.size or contract.shape


def _curve(scene: Scene, order: NDArray[np.intp], before: Tensor, after: Tensor, steps: int) -> NDArray[np.float32]:
    """(steps + 1,): the value while `before` becomes `after`, place by place in `order`."""
    count = len(order)
    rank = torch.empty(count, dtype=torch.long)
    rank[torch.from_numpy(order)] = torch.arange(count)
    contract = scene.model.contract
    if isinstance(contract, TableContract):
        rank = rank[torch.from_numpy(contract.owners)][None].to(before.device)
    else:
        rank = rank.reshape(1, *(1,) * bool(contract.size), *_places(scene)).to(before.device)
    limits = np.rint(np.linspace(0, count, min(steps, count) + 1)).astype(int)
    measured, network = _measured(scene), scene.packed()

    def run(start: int, stop: int) -> Tensor:
        limit = torch.as_tensor(limits[start:stop], device=before.device).reshape(-1, *(1,) * (rank.ndim - 1))
        return aims.scores(scene.model, measured, network, torch.where(rank < limit, after, before))

    values = torch.cat(in_chunks(run, len(limits), chunk_size(scene.model))).float().cpu().numpy()
    whole = 1.0 if measured.reading == "probability" else abs(scene.value)
    shares: NDArray[np.float32] = (values / (whole or np.nan)).astype(np.float32)
    return shares


def _measured(scene: Scene) -> Aim:
    """Of a class its probability, else the aim itself."""
    layer = scene.model.layers[scene.aim.layer]
    if scene.model.class_layer in (scene.aim.layer, layer.alias_of) and not layer.positions:
        return replace(scene.aim, reading="probability")
    return scene.aim


def ordered(values: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.intp]:
    """Flat places, the largest value first; equal ones in random order."""
    return np.lexsort((rng.random(values.size), -values.ravel()))


def area(curve: NDArray[np.floating]) -> float | None:
    """Under a curve over [0, 1] in even steps; None if it is not finite."""
    found = float(np.mean((curve[1:] + curve[:-1]) / 2)) if len(curve) > 1 else float(curve[0])
    return found if np.isfinite(found) else None


def placed(values: NDArray[np.floating], shape: Sequence[int]) -> NDArray[np.float32]:
    """A map at the input's size; a coarser one is enlarged linearly."""
    if values.shape == tuple(shape) or len(shape) not in _SMOOTH or values.ndim != len(shape):
        return np.asarray(values, np.float32).reshape(shape)
    given = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
    large = F.interpolate(given, tuple(shape), mode=_SMOOTH[len(shape)], align_corners=False)[0, 0]
    return np.asarray(large.numpy(), np.float32)


# noise


def _by_noise(
    technique: Technique, request: Request, scene: Scene, result: ExplainResult, draws: int, told: Callable[[], None]
) -> tuple[dict[str, float | None], dict[str, NDArray[Any]]]:
    whole = np.linalg.norm(result.values)
    changes, ranks = [], []
    for draw in range(draws):
        noisy = technique.run(replace(request, input=_noisy(scene, draw)))
        assert isinstance(noisy, ExplainResult)
        told()
        changes.append(float(np.linalg.norm(noisy.values - result.values)))
        ranks.append(spearman(noisy.map, result.map))
    none = not draws or whole == 0
    return {
        "sensitivity": None if none else float(max(changes) / whole),
        "noise_rank": None if none else min(ranks),
    }, {}


def _noisy(scene: Scene, draw: int) -> NDArray[Any]:
    """The input with noise, even in ± 2 % of its range; what lay in [0, 1] stays there."""
    if isinstance(scene.model.contract, TableContract):
        return _noisy_row(scene, scene.model.contract, draw)
    given = np.asarray(scene.input / 255 if scene.input.dtype == np.uint8 else scene.input, np.float32)
    low, high = float(given.min()), float(given.max())
    within = low >= 0 and high <= 1
    radius = _RADIUS * (1.0 if within else high - low)
    noisy = given + scene.rng("noise", draw).uniform(-radius, radius, given.shape)
    return np.asarray(noisy.clip(0, 1) if within else noisy, np.float32)


def _noisy_row(scene: Scene, contract: TableContract, draw: int) -> NDArray[np.float64]:
    """A row with noise in ± 2 % of each column's range in the data, without data of four standard deviations; categories stay."""
    if scene.data is not None:
        rows = background(scene.data, contract, 1000).rows
        width = np.ptp(np.concatenate([rows, scene.input[None]]), axis=0)
    else:
        width = np.array([4 * column.std for column in contract.columns])
    moves = np.array([not column.categorical for column in contract.columns])
    noise = scene.rng("noise", draw).uniform(-_RADIUS, _RADIUS, len(width))
    row: NDArray[np.float64] = scene.input + noise * width * moves
    return row


# randomisation


def _by_scrambling(
    technique: Technique, request: Request, scene: Scene, result: ExplainResult, depth: int, told: Callable[[], None]
) -> tuple[dict[str, float | None], dict[str, NDArray[Any]]]:
    steps = stages(scene.model, scene.aim.layer, depth)
    rows = []
    for model in scrambled(scene, steps):
        told()
        try:
            other = technique.run(replace(request, model=model))
        except CannotRun:  # a scrambled network may overflow
            rows.append((np.nan, np.nan, np.nan))
            continue
        assert isinstance(other, ExplainResult)
        rows.append(_alike(other, result))
    table = np.asarray(rows, np.float64).reshape(-1, 3)
    shares = np.asarray([step.share for step in steps])
    table_row = isinstance(
        scene.model.contract, TableContract
    )  # which has no edges that the lowest layers may agree on
    upper = shares <= (1.0 if table_row else max(_UPPER, shares.min(initial=1.0)))
    names = ("randomisation_signed", "randomisation_absolute", "randomisation_ssim")
    numbers = {
        "randomisation": _mean(table[upper, :2].max(1)),
        **{n: _mean(table[upper, k]) for k, n in enumerate(names)},
    }
    curves = {f"{name}_curve": table[:, n].astype(np.float32) for n, name in enumerate(names)}
    return numbers, {**curves, "randomisation_share": shares.astype(np.float32)}


def _mean(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _alike(other: ExplainResult, result: ExplainResult) -> tuple[float, float, float]:
    """Similarity of two maps: of the values by rank, of the magnitudes by rank, of the magnitudes by structure."""
    a, b = other.values, result.values
    if a.shape != b.shape:
        shape = result.input.shape[1:] or result.input.shape
        a, b = placed(other.map, shape), placed(result.map, shape)
    pictures = [np.abs(m).sum(0) if m.shape == result.input.shape and m.ndim > 1 else np.abs(m) for m in (a, b)]
    return spearman(a, b), spearman(np.abs(a), np.abs(b)), structure(*pictures)


def spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Rank correlation, equal values sharing their mean rank; 0 where one of them is even."""
    x, y = (_ranks(values) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, place, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    shared: NDArray[np.float64] = (last - (count - 1) / 2)[place.ravel()]
    return shared


def structure(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Structural similarity (Wang et al. 2004) of two maps ≥ 0, each over its largest value, in windows of 7 × 7; NaN if too small."""
    window = min(_WINDOW, *a.shape) if a.ndim == 2 else 0
    if window < 3:
        return float("nan")
    window -= 1 - window % 2
    x, y = (torch.from_numpy(np.asarray(m, np.float64) / max(float(m.max()), 1e-30))[None] for m in (a, b))

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, window, 1)

    norm = window**2 / (window**2 - 1)  # of the sample covariance
    mx, my = mean(x), mean(y)
    vx, vy, vxy = (norm * (mean(p * q) - mp * mq) for p, q, mp, mq in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my)))
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(found.mean())

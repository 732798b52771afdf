"""What taking a unit away would cost, told from gradients: for networks with too many units to take them away one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.models.places import Following, Place, pass_through
from penlight.models.probe import first_tensor
from penlight.techniques.diagnose.ablation import Bench

_DRAWS = 8  # answers drawn for each input
_TOGETHER = 8  # inputs in one pass: all layers' maps are held for the way back
Numbers = NDArray[np.float64]


def estimated(
    bench: Bench, paths: Sequence[str], inputs: NDArray[Any], classes: Sequence[int | None],
    held: Mapping[str, Numbers | None], seed: int,
) -> dict[str, Numbers]:  # fmt: skip
    """Layer → (units, 2): mean change of the loss when a unit goes to its value in `held` (zero if None), estimated; NaN for the accuracy.

    Second-order Taylor expansion in a factor that a unit is multiplied by, from 1 to 0, after Molchanov et al. 2017
    (arXiv:1611.06440): the slope, and half the curvature by Theis et al. 2018 (arXiv:1801.05787), the mean square of the slopes of
    the likelihood of answers drawn from the network's own. Against its own answers the slope is 0 and only the curvature is left.
    """
    total = {path: np.zeros(bench.model.layers[path].units) for path in paths}
    count = 0
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(inputs), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        found, known = _costs(bench, paths, inputs[part], classes[part], held, generator)
        for path, costs in found.items():
            total[path] += costs[known].sum(0)
        count += int(known.sum())
    return {path: np.stack([sums / max(count, 1), np.full(len(sums), np.nan)], 1) for path, sums in total.items()}


def _costs(
    bench: Bench, paths: Sequence[str], inputs: NDArray[Any], classes: Sequence[int | None],
    held: Mapping[str, Numbers | None], generator: torch.Generator,
) -> tuple[dict[str, Numbers], NDArray[np.bool_]]:  # fmt: skip
    """Layer → (N, units), and (N,) which of the inputs have a label."""
    factors: dict[str, Tensor] = {}

    def visit(path: str, after: Tensor) -> Tensor:
        place, value = bench.places[path], held.get(path)
        factors[path] = after.new_ones(len(inputs), bench.model.layers[path].units, requires_grad=True)
        factor = _laid(factors[path], place)
        if value is None:
            return after * factor
        return after * factor + _laid(torch.as_tensor(value[None], dtype=after.dtype, device=after.device), place) * (
            1 - factor
        )

    seen: list[Tensor] = []
    class_layer = bench.model.class_layer
    with torch.enable_grad():
        x = bench.model.tensor(inputs)
        follow = Following({path: bench.places[path] for path in paths}, visit)
        output = pass_through(bench.network, follow, x, {} if class_layer is None else {class_layer: seen.append})
        last = seen[-1] if seen else first_tensor(output)
        assert last is not None
        scores = bench.flat(last)
        costs = {path: np.zeros(factor.shape) for path, factor in factors.items()}
        known = np.ones(len(inputs), bool)
        if class_layer is None:
            power = (scores.detach() ** 2).sum(1, keepdim=True).clamp_min(1e-12)
            for _ in range(_DRAWS):  # the mean square of a random mixture's slope is the squared change of all outputs
                mixed = torch.randn(scores.shape, generator=generator).to(scores) * scores / power.sqrt()
                _add(costs, factors, mixed.sum(), lambda slope: slope**2 / _DRAWS)
            return costs, known
        logarithms = scores.log_softmax(1)
        if bench.truth.classes is not None:
            known = np.array([c is not None and 0 <= c < len(bench.truth.classes) for c in classes])
            target = [
                int(bench.truth.classes[c]) if ok and c is not None else 0 for c, ok in zip(classes, known, strict=True)
            ]
            _add(costs, factors, _chosen(logarithms, torch.tensor(target)).sum(), lambda slope: slope)
        shares = logarithms.detach().exp().cpu()
        for _ in range(_DRAWS):
            drawn = torch.multinomial(shares, 1, generator=generator)[:, 0]
            _add(costs, factors, _chosen(logarithms, drawn).sum(), lambda slope: slope**2 / (2 * _DRAWS))
    return costs, known


def _chosen(logarithms: Tensor, classes: Tensor) -> Tensor:
    return logarithms.gather(1, classes[:, None].to(logarithms.device))


def _add(costs: dict[str, Numbers], factors: Mapping[str, Tensor], value: Tensor, cost: Any) -> None:
    """Add what a value's slopes in the factors say."""
    slopes = torch.autograd.grad(value, list(factors.values()), retain_graph=True, allow_unused=True)
    for path, slope in zip(factors, slopes, strict=True):
        if slope is not None:
            costs[path] += cost(slope.detach().double().cpu().numpy())


def _laid(values: Tensor, place: Place) -> Tensor:
    """(N, units) as a layer lies, with 1 for every other axis."""
    batch, units = place.layout.index("N"), place.layout.index("C")
    shape = [1] * len(place.layout)
    shape[batch], shape[units] = values.shape
    return (values if batch < units else values.t()).reshape(shape)


def enough(budget: float, work: Mapping[str, float], fewest: int) -> list[str]:
    """Layers whose single units can be measured on `fewest` inputs within the budget of multiply-adds, the cheapest first."""
    found, spent = [], 0.0
    for path in sorted(work, key=lambda path: work[path]):
        spent += fewest * work[path]
        if spent > budget and not math.isinf(budget):
            break
        found.append(path)
    return found

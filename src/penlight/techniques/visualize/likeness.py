"""How alike are the pictures that several starts gave one unit: to the network itself, and to the eye?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from penlight.models import Model, Probe
from penlight.models.probe import Reader, undisturbed
from penlight.techniques.visualize.scene import Optics

SAME = 0.6  # likeness to the network from which on two pictures count as one pattern; see `recurrence`
_BELOW = 3  # layers looked at below the target's own
_CONTRASTS = (
    0.02,
    0.05,
    0.1,
    0.2,
    0.35,
)  # standard deviations of noise, as shares of the range; a photograph has about 0.2
_NOISE = 4  # random starts that are looked at for each of them
_MANY = 8  # units from which on what they have in common is taken off
_AT_LEAST, _PIXELS = 8, 128 * 128
_TINY = 1e-12
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004
_FAR = 4  # pictures are aligned by up to a quarter of the side
_PEAKS = 3  # of the phase correlation that are tried
_EYE = 64  # pixels a picture has at most when it is looked at
_LUMINANCE = (0.299, 0.587, 0.114)

Matrices = dict[int, NDArray[np.float32]]  # group -> (K, K), in the order of its pictures


def layers_for(model: Model, target: str) -> list[str]:
    """The target's layer and up to three below it, evenly spread over the nearer half of those that run before it; the lowest first.

    What lies in the farther half sees textures only and hardly tells one unit's pictures from another's.
    """
    order = [path for path, layer in model.layers.items() if layer.alias_of is None or path == target]
    below = [path for path in order[: order.index(target)] if path != model.layer(target).alias_of]
    near = below[len(below) // 2 :]
    count = min(_BELOW, len(near))
    chosen = [near[round((n + 0.5) * len(near) / count - 0.5)] for n in range(count)]
    return [*dict.fromkeys(chosen), target]


def network(
    model: Model, layers: Sequence[str], pictures: NDArray[np.uint8], groups: NDArray[np.integer], baseline: NDArray[np.uint8]
) -> Matrices:  # fmt: skip
    """How alike the pictures (N, C, H, W) of each group are to the network, from -1 to 1; `groups` (N,) says whose they are.

    Correlation of its activations, averaged over `layers`. Of each unit the maximum over positions counts, so that it does not matter
    where a pattern stands, and how far that lies from what noise of the same contrast does to it; the noise is `baseline`
    (M, C, H, W), the random starts, of which the first four are used. So noise lies near 0 and pictures of different units mostly
    under 0.5.
    """
    place = np.interp(_spread(pictures), _CONTRASTS, range(len(_CONTRASTS)))
    low = np.minimum(place.astype(int), len(_CONTRASTS) - 2)  # of the two contrasts each picture lies between
    first, last = int(low.min()), int(low.max()) + 1
    noise = [_contrasted(baseline[:_NOISE], share) for share in _CONTRASTS[first : last + 1]]
    answers = _strongest(model, layers, np.concatenate([pictures, *noise]))
    centred = [_off_common(_off_noise(values, low - first, place - low)) for values in answers.values()]
    found: Matrices = {}
    for group in dict.fromkeys(groups.tolist()):
        own = groups == group
        found[group] = np.mean([_cosines(values[own]) for values in centred], axis=0).astype(np.float32)
    return found


def eye(pictures: NDArray[np.uint8], groups: NDArray[np.integer]) -> Matrices:
    """How alike the pictures (N, C, H, W) of each group are to the eye: structural similarity after alignment, from -1 to 1."""
    found: Matrices = {}
    seen = _seen(pictures)
    for group in dict.fromkeys(groups.tolist()):
        own = seen[groups == group]
        matrix = np.eye(len(own), dtype=np.float32)
        for a in range(len(own)):
            for b in range(a):
                matrix[a, b] = matrix[b, a] = aligned(own[a], own[b])
        found[group] = matrix
    return found


def recurrence(
    likeness: NDArray[np.float32], reached: NDArray[np.bool_] | None = None, threshold: float = SAME
) -> NDArray[np.int32]:
    """(K, K) likeness to the network -> (K,): how many of the K pictures show the pattern of this one, itself included.

    `reached` (K,) is false for pictures that no gradient reached: they show no pattern, and stand at 0.

    The threshold is where one number best tells pictures of one unit from pictures of two, measured on four starts each of 154 units
    of `letters` (conv1, conv2, conv3, fc) and 20 of SqueezeNet at four depths: 97 % of the pairs of one unit lie above it and 5 % of
    the pairs of two units of one layer (at most 19 %, on the layer after the third Fire module, many of whose units want the same).
    """
    alike = (likeness >= threshold) | np.eye(len(likeness), dtype=bool)
    if reached is not None:
        alike = alike & reached & reached[:, None]
    return np.asarray(alike.sum(1), np.int32)


def _spread(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, C, H, W) → (N,): standard deviation of the values around their channel's mean, as a share of the range."""
    values = pictures.astype(np.float64)
    return np.asarray((values - values.mean((2, 3), keepdims=True)).std((1, 2, 3)) / 255)


def _contrasted(pictures: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Noise, (M, C, H, W), made fainter or stronger until its standard deviation is `share` of the range."""
    values = pictures.astype(np.float64)
    middle = values.mean((2, 3), keepdims=True)
    times = share / np.maximum(_spread(pictures), 1 / 255)
    raised = middle + (values - middle) * times[:, None, None, None]
    return np.asarray(np.clip(raised + 0.5, 0, 255), np.uint8)


def _off_noise(answers: NDArray[np.float64], low: NDArray[np.int64], part: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers to N pictures and, behind them, to noise of several contrasts → (N, units), less what noise of their contrast does.

    `low` (N,) is the contrast next below each picture's, `part` how far it lies towards the next.
    """
    size = len(low)
    noise = answers[size:].reshape(int(low.max()) + 2, -1, answers.shape[1]).mean(1)
    return np.asarray(answers[:size] - (1 - part[:, None]) * noise[low] - part[:, None] * noise[low + 1])


def _strongest(model: Model, layers: Sequence[str], pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Each layer's answers to the pictures, (N, units), the maximum over positions."""
    optics = Optics.of(model)
    found: dict[str, list[Tensor]] = {path: [] for path in layers}

    def reader(path: str) -> Reader:
        layer = model.layer(path)

        def read(output: Tensor) -> None:
            first = layer.units_first(output).double()
            found[path].append(first.flatten(2).amax(2) if layer.positions else first.clone())

        return read

    step = max(_AT_LEAST, _PIXELS // (pictures.shape[2] * pictures.shape[3]))
    wanted = {path: reader(path) for path in layers}
    with undisturbed(model.network), torch.inference_mode(), Probe(model.network, wanted) as probe:
        for at in range(0, len(pictures), step):
            some = torch.from_numpy(pictures[at : at + step]).to(optics.mean.device).float() / 255
            probe(optics.reshape(optics.normalize(some)))
    return {path: torch.cat(parts).nan_to_num().cpu().numpy() for path, parts in found.items()}


def _off_common(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, units) without what all units have in common: whatever is rich in contrast excites most of them."""
    return values - values.mean(1, keepdims=True) if values.shape[1] >= _MANY else values


def _cosines(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, units) -> (K, K); 0 between different pictures where one says nothing."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    units = values / np.maximum(lengths, _TINY)
    cosines: NDArray[np.float64] = np.clip(units @ units.T, -1, 1)
    np.fill_diagonal(cosines, 1)
    return cosines


def _seen(pictures: NDArray[np.uint8]) -> Tensor:
    """(N, C, H, W) uint8 -> luminance (N, H, W) in 0…255, made smaller until neither side has more than 64 pixels."""
    values = torch.from_numpy(pictures).float()
    if values.shape[1] == 3:
        values = (values * torch.tensor(_LUMINANCE).reshape(3, 1, 1)).sum(1, keepdim=True)
    else:
        values = values.mean(1, keepdim=True)
    factor = math.ceil(max(values.shape[2:]) / _EYE)
    if factor > 1:
        values = F.avg_pool2d(values, [min(factor, side) for side in values.shape[2:]], ceil_mode=True)
    return values[:, 0]


def aligned(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two pictures (H, W) in 0…255 where they overlap best: unmoved, or at a peak of their phase correlation.

    Kuglin & Hines 1975; the shift is at most a quarter of the side.
    """
    return max(ssim(*_overlap(a, b, down, right)) for down, right in {(0, 0), *_peaks(a, b)})


def _peaks(a: Tensor, b: Tensor) -> list[tuple[int, int]]:
    """Shifts (down, right) of `a` against `b`, the likeliest ones within reach."""
    height, width = a.shape
    fade = (
        torch.hann_window(height + 2, periodic=False)[1:-1, None] * torch.hann_window(width + 2, periodic=False)[1:-1]
    )
    spectra = [torch.fft.fft2((picture - picture.mean()) * fade) for picture in (a, b)]
    cross = spectra[0] * spectra[1].conj()
    correlation = torch.fft.ifft2(cross / cross.abs().clamp(min=_TINY)).real
    rows, columns = torch.arange(height), torch.arange(width)
    far = torch.minimum(rows, height - rows)[:, None] > height // _FAR
    far = far | (torch.minimum(columns, width - columns) > width // _FAR)
    best = correlation.masked_fill(far, -math.inf).flatten().topk(min(_PEAKS, int((~far).sum()))).indices.tolist()
    shifts = [(at // width, at % width) for at in best]
    return [(d - height * (d > height // 2), r - width * (r > width // 2)) for d, r in shifts]


def _overlap(a: Tensor, b: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """The parts of `a` and `b` that lie on each other when `a` shows what `b` shows, `down` and `right` pixels further."""
    height, width = a.shape
    first = a[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    second = b[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    return first, second


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of two pictures (H, W) in 0…255, over all windows that lie inside.

    Wang, Bovik, Sheikh & Simoncelli 2004: Gaussian windows of 11 × 11 with σ = 1.5, K1 = 0.01, K2 = 0.03. Along a side of fewer
    pixels than 11 the window is the largest odd number of them, its σ smaller in proportion.
    """
    down, right = (_gaussian(side) for side in a.shape)
    window = (down[:, None] * right)[None, None]

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values[None, None], window)[0, 0]

    a, b = a.double(), b.double()
    x, y = mean(a), mean(b)
    variance_x, variance_y = mean(a * a) - x * x, mean(b * b) - y * y
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    same = (2 * x * y + c1) * (2 * (mean(a * b) - x * y) + c2)
    return float((same / ((x * x + y * y + c1) * (variance_x + variance_y + c2))).mean())


def _gaussian(side: int) -> Tensor:
    size = min(_WINDOW, side - (side + 1) % 2)
    at = torch.arange(size, dtype=torch.float64) - size // 2
    weights = (-(at**2) / (2 * (_SIGMA * size / _WINDOW) ** 2)).exp()
    return weights / weights.sum()

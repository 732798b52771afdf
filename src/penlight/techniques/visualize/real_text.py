"""What units say to real text: the values that strings are compared with, and the passage that drives each furthest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.errors import BadInput, CannotRun
from penlight.inputs import Data
from penlight.models import Model
from penlight.models.tracks import LANES, OUTPUT, WHOLE, tracks
from penlight.results.strings import RealText
from penlight.techniques.visualize.beams import Stepper
from penlight.techniques.visualize.likelihood import Prior
from penlight.units import Unit

_SHOWN = 400  # tokens of a passage of a text that has one value
_TEXT = 2000  # tokens of a text that is read where it has one value


@dataclass(frozen=True, eq=False)
class Real:
    """values: for each unit what it says to real text, as the method asked; passages: the stretch that drives it furthest.

    count     tokens that were read, or texts where a text has one value
    bits      surprise of real text in bits a token; NaN where it is not known
    """

    values: tuple[NDArray[np.float32], ...]
    passages: tuple[RealText | None, ...]
    count: int
    bits: float
    notes: tuple[str, ...] = ()


@dataclass
class _Text:
    """Parts of one text as they were read: tokens (t,), values of a layer's units (t, units)."""

    ids: list[NDArray[np.int64]] = field(default_factory=list)
    values: list[NDArray[np.float32]] = field(default_factory=list)


def read_real(model: Model, data: Data, units: Sequence[Unit], prior: Prior, at: str, length: int, budget: int,
              minimize: bool) -> Real:  # fmt: skip
    """Up to about `budget` tokens of the data, from the beginnings of its texts."""
    index: dict[str, list[int]] = {}
    for unit in units:
        index.setdefault(unit.layer, []).append(unit.index or 0)
    placed = {path: rows for path, rows in index.items() if "L" in model.layer(path).layout}
    lost = list[tuple[float, int]]()
    read = _placed(model, data, placed, prior, budget, lost) if placed else {}
    read |= {path: _judged(model, data, path, rows, budget) for path, rows in index.items() if path not in placed}
    found, taken = list[tuple[NDArray[np.float32], RealText | None]](), dict.fromkeys(index, 0)
    for unit in units:
        path, k = unit.layer, taken[unit.layer]
        taken[path] += 1
        own = {n: (ids, values[:, k]) for n, (ids, values) in read[path].items()}
        way = "last" if unit.position is not None or path not in placed else at
        found.append(_furthest(model, data, own, way, length, minimize))
    first = read[units[0].layer]
    count = sum(len(ids) for ids, _ in first.values()) if units[0].layer in placed else len(first)
    bits = sum(a for a, _ in lost) / max(1, sum(b for _, b in lost)) if lost else float("nan")
    notes = () if count else (f"nothing of {data.name} could be read to compare with",)
    values, passages = zip(*found, strict=True)
    return Real(values, passages, count, bits, notes)


Texts = dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]


def _placed(
    model: Model, data: Data, index: dict[str, list[int]], prior: Prior, budget: int, lost: list[tuple[float, int]]
) -> dict[str, Texts]:
    """Layer → text → (tokens (t,), values (t, units)), of layers with a value a token; fills `lost`, (bits, tokens)."""
    share = max(200, budget // max(1, min(len(data), LANES)))

    def read(n: int) -> NDArray[np.int64]:
        return np.asarray(data.read(n)[: min(share, WHOLE)], np.int64)

    found: dict[str, dict[int, _Text]] = {path: {} for path in index}
    left = budget
    for part in tracks(model, len(data), [*index, *([OUTPUT] if prior.own else [])], read=read):
        for path, rows in index.items():
            text = found[path].setdefault(part.text, _Text())
            text.ids.append(part.ids)
            text.values.append(part.values[path][:, rows].float().cpu().numpy().copy())
        if prior.known and len(part.ids) > 1:
            ids = torch.from_numpy(part.ids)[None].to(model.device)
            surprise = prior.bits(part.values[OUTPUT][None] if prior.own else None, ids)
            lost.append((float(surprise.sum()), len(part.ids) - 1))
        left -= len(part.ids)
        if left <= 0:
            break
    return {
        path: {n: (np.concatenate(text.ids), np.concatenate(text.values)) for n, text in texts.items()}
        for path, texts in found.items()
    }


def _judged(model: Model, data: Data, path: str, index: list[int], budget: int) -> Texts:
    """Text → (tokens (t,), values (1, units)), of a layer with a value a text."""
    stepper, texts, left = Stepper(model, path, False), Texts(), budget
    for n in range(len(data)):
        try:
            ids = np.asarray(data.read(n)[:_TEXT], np.int64)
            values, _ = stepper.whole(torch.from_numpy(ids)[None].to(model.device))
        except (BadInput, CannotRun):
            continue
        texts[n] = (ids, values[0, :, index].cpu().numpy())
        left -= len(ids)
        if left <= 0:
            break
    return texts


def _furthest(model: Model, data: Data, texts: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]], at: str, length: int,
              minimize: bool) -> tuple[NDArray[np.float32], RealText | None]:  # fmt: skip
    """All values of one unit, and the passage with the furthest."""
    sign, words = -1.0 if minimize else 1.0, model.text.vocabulary if model.text is not None else ()
    read = {n: _windowed(values, at, length, sign) for n, (_, values) in texts.items()}
    read = {n: values for n, values in read.items() if len(values)}
    if not read:
        return np.zeros(0, np.float32), None
    best = max(read, key=lambda n: float((sign * read[n]).max()))
    end, (ids, track) = int((sign * read[best]).argmax()), texts[best]
    if len(track) == len(ids):
        stop = end + 1 if at == "last" else end + length
        start = max(0, stop - length)
        shown, drawn = ids[start:stop], track[start:stop]
    else:
        start, shown = 0, ids[:_SHOWN]
        drawn = np.full(len(shown), np.nan, np.float32)
    told = tuple(words[n] for n in shown.tolist())
    name = data.label(best)[0]
    return np.concatenate(list(read.values())), RealText(name, start, told, drawn, float(read[best][end]))


def _windowed(values: NDArray[np.float32], at: str, length: int, sign: float) -> NDArray[np.float32]:
    """(t,): values as strings of this length are judged: at every token, or of every window."""
    if at == "last" or len(values) < length:
        return values if at == "last" else values[:0]
    if at == "mean":
        sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        found: NDArray[np.float32] = ((sums[length:] - sums[:-length]) / length).astype(np.float32)
        return found
    views = np.lib.stride_tricks.sliding_window_view(sign * values, length)
    peaks: NDArray[np.float32] = (sign * views.max(1)).astype(np.float32)
    return peaks

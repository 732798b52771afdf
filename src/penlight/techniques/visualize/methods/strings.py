"""`strings`: texts that drive a unit of a network on text up or down, likely ones if it knows what is likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadUnit, CannotRun
from penlight.inputs import TextContract
from penlight.models import Model
from penlight.results import PassagesResult, StringsResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.visualize.beams import Drawn, Stepper, Wish, beam, ends, written
from penlight.techniques.visualize.likelihood import Prior, prior_of
from penlight.techniques.visualize.real_text import Real, read_real
from penlight.techniques.visualize.swaps import Swaps
from penlight.techniques.visualize.synthesis import asked
from penlight.units import Unit

WRITTEN = 1024  # strings drawn from the prior, to compare with and to measure the unit's spread by
_SAME = 1e-6  # of a value: what rounding may change


@dataclass(frozen=True)
class Strings(Technique):
    """Strings of tokens that drive a unit, found by beam search with the network's own likelihood, or by exchanging tokens.

    >>> r = penlight.visualize("code", "lstm.cell_l1:17", seeds=3)     # doctest: +SKIP
    >>> r.strings("lstm.cell_l1:17")[0], r.values[0], r.bits[0]        # doctest: +SKIP

    What is climbed is the unit's value in standard deviations (of its values on strings that the prior writes) less `likelihood` times
    the string's surprise in bits a token. Beam search runs every token behind every string of the beam, the network's states carried
    on; a network that cannot go on token by token is given strings from which the gradient exchanges tokens (HotFlip), each exchange
    verified by a pass. Later strings avoid stretches of four tokens of the earlier ones. The likelihood is that of the network where
    its output foretells the next token, else that of the data's pairs of tokens, else there is none.
    """

    verb: ClassVar[str] = "visualize"
    name: ClassVar[str] = "strings"
    paper: ClassVar[str] = (
        "ours; exchanging tokens after Ebrahimi et al., HotFlip, ACL 2018 (arXiv:1712.06751); cells as in Karpathy, Johnson & Fei-Fei,"
        " Visualizing and Understanding Recurrent Networks, 2015 (arXiv:1506.02078)"
    )
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    reads_data: ClassVar[bool] = True

    seeds: int = option(3, "different strings a unit", low=1, high=100)
    minimize: bool = option(False, "look for strings that drive the unit down")
    length: int = option(40, "tokens of a string, the prompt not counted", low=2, high=2000)
    start: str = option("", "prompt: text that every string begins with")
    at: str = option(
        "last", "what counts: the value at the last token, the mean over the string, or its peak", choices=("last", "mean", "peak")
    )  # fmt: skip
    likelihood: float = option(
        1.0, "what a bit a token of surprise weighs, in standard deviations of the unit; 0: nothing", low=0
    )
    diversity: float = option(
        4.0, "what a string loses that repeats an earlier one in every stretch of four tokens, in standard deviations", low=0
    )  # fmt: skip
    search: str = option(
        "auto", "beam, token by token; gradient, by exchanging tokens; auto takes beam where the network can go on from its states",
        choices=("auto", "beam", "gradient"),
    )  # fmt: skip
    width: int = option(16, "strings that are kept at a time", low=1, high=1000)
    rounds: int = option(40, "rounds of exchanges, for gradient search", low=1)
    real: int = option(60_000, "tokens of the data that the strings are compared with, about; 0: none", low=0)

    def run(self, request: Request) -> StringsResult:
        """Strings for all units of the request; without any, for the cells that a survey handed over found to follow the text best.

        Of those, cells that are low where their property holds are for `minimize`, the others for the other way; there may be none.
        """
        model, contract = request.model, request.model.text
        if contract is None:
            raise CannotRun(f"method strings is for networks on text; {model.reference} takes an {model.contract.kind}")
        given = self._readable(request) if request.earlier else asked(request)
        units = list(dict.fromkeys(unit for item in given for unit in model.find(item)))
        if not units:
            none = np.zeros((0, self.seeds, self.length), np.int32)
            values, tracks = none[:, :, 0].astype(np.float32), none.astype(np.float32)
            return StringsResult(provenance(self, request), (), (), none, (), values, tracks, minimize=self.minimize)
        prompt = self._prompt(model, contract, units)
        prior = prior_of(model, request.data, max(self.real, 1))
        work = _Work(self, request, prior, torch.from_numpy(prompt).to(model.device), len(units))
        rows = [work.strings(n, unit) for n, unit in enumerate(units)]
        result = self._result(request, units, rows, prior, len(prompt))
        if request.data is None or not self.real:
            return result
        return _compared(
            result, read_real(model, request.data, units, prior, self.at, self.length, self.real, self.minimize)
        )

    def _readable(self, request: Request) -> list[Any]:
        """The units of the request, or those of the survey's best cells whose claims stand."""
        named = [*request.targets, *request.units]
        surveys = [result for result in request.earlier if isinstance(result, PassagesResult)]
        found = {str(one.unit): one for survey in surveys for one in survey.best if one.stands}
        return named or [unit for unit, one in found.items() if one.falls == self.minimize]

    def _prompt(self, model: Model, contract: TextContract, units: Sequence[Unit]) -> NDArray[np.int64]:
        prompt = contract.encode(self.start, "the prompt") if self.start else np.zeros(0, np.int64)
        for unit in units:
            place = None if unit.position is None else unit.position[0]
            if place is not None and not len(prompt) <= place < len(prompt) + self.length:
                raise BadUnit(
                    f"{unit} is at token {place}; the string's tokens are {len(prompt)} to {len(prompt) + self.length - 1}, see length"
                )
        return prompt

    def _result(
        self, request: Request, units: Sequence[Unit], rows: Sequence[_Row], prior: Prior, prompt: int
    ) -> StringsResult:
        model = request.model
        assert model.text is not None
        words = model.text.vocabulary
        ids = np.stack([row.ids for row in rows]).astype(np.int32)
        tokens = tuple(tuple(tuple(words[n] for n in one) for one in many) for many in ids.tolist())
        labels = tuple(model.label(unit) for unit in units)
        flat = np.array([row.flat for row in rows])
        notes = [f"{unit} says {rows[n].values[0]:.3g} whatever the text" for n, unit in enumerate(units) if flat[n]]
        if not prior.known and self.likelihood:
            notes.append(
                "nothing is known of how likely a text is: the network does not foretell tokens, and no data was given"
            )
        return StringsResult(
            provenance(self, request), tuple(map(str, units)), labels, ids, tokens,
            np.stack([row.values for row in rows]), np.stack([row.tracks for row in rows]),
            prompt=prompt, minimize=self.minimize, at=self.at, prior=prior.source,
            bits=np.stack([row.bits for row in rows]), surprises=np.stack([row.surprises for row in rows]),
            written=np.stack([row.written for row in rows]), written_bits=rows[0].written_bits, flat=flat,
            read=np.array([row.read for row in rows], np.int64), notes=tuple(notes),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Row:
    """What was found for one unit; arrays as in the result, without the units' axis."""

    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    tracks: NDArray[np.float32]
    bits: NDArray[np.float32]
    surprises: NDArray[np.float32]
    written: NDArray[np.float32]
    written_bits: float
    flat: bool
    read: int


class _Work:
    """The search, unit by unit; units of a layer share what is drawn from the prior."""

    def __init__(self, method: Strings, request: Request, prior: Prior, prompt: Tensor, units: int) -> None:
        self.method, self.request, self.prior, self.prompt = method, request, prior, prompt
        self.model, contract = request.model, request.model.text
        assert contract is not None
        known = [n for n in range(len(contract.vocabulary)) if n != contract.unknown]
        self.tokens = torch.tensor(known, device=prompt.device)
        self._steppers: dict[str, tuple[Stepper, Tensor, Tensor, Tensor]] = {}
        self._steps = sum(ends(method.length))
        self._total = units * method.seeds * self._steps

    def strings(self, number: int, unit: Unit) -> _Row:
        """All strings of one unit."""
        assert unit.index is not None
        stepper, drawn, heard, bits = self._opened(unit.layer)
        method, start = self.method, len(self.prompt)
        tracks = heard[..., unit.index]
        cost = float(bits[:, start:].sum(1).mean()) / max(1, method.length - (0 if start else 1))
        spread = float(tracks.double().std()) if tracks.numel() > 1 else 0.0
        flat = spread <= _SAME * (float(tracks.abs().max()) + 1e-12)
        place = None if unit.position is None else unit.position[0] - start
        wish = Wish(
            unit.index, 1.0 if flat else spread, -1.0 if method.minimize else 1.0, method.at if stepper.placed else "last",
            method.length, method.width, method.likelihood if self.prior.known else 0.0, method.diversity, self.tokens, place,
        )  # fmt: skip
        sampled = wish.reached(tracks)
        before, found = stepper.read_tokens, list[NDArray[np.int64]]()
        swaps = self._swaps(stepper, unit.layer)
        for seed in range(method.seeds):
            own = wish.without([ids[start:] for ids in found], stepper.words)
            begun = (number * method.seeds + seed) * self._steps
            if swaps is None:
                told = partial(self._tell, begun)
                best = beam(stepper, self.prior, own, self.prompt, Drawn(drawn, tracks, bits), told)[0]
            else:
                best = self._climbed(swaps, drawn, sampled, own, seed)
                self._tell(begun, self._steps)
            found.append(best.cpu().numpy())
        read = stepper.read_tokens - before + (0 if swaps is None else swaps.read_tokens)
        return self._row(stepper, unit, wish, found, sampled, cost, flat, read)

    def _tell(self, begun: int, done: int) -> None:
        self.request.progress(min(begun + done, self._total), self._total)

    def _opened(self, path: str) -> tuple[Stepper, Tensor, Tensor, Tensor]:
        """How the layer is read; strings drawn from the prior, their values (n, T or 1, units) and their surprises (n, P + T)."""
        if path not in self._steppers:
            stepper = Stepper(self.model, path, self.prior.own)
            generator = torch.Generator().manual_seed(self.request.seed)
            drawn = written(stepper, self.prior, self.tokens, self.prompt, WRITTEN, self.method.length, generator)
            values, scores = stepper.whole(drawn)
            start = len(self.prompt)
            values = values[:, start:] if values.shape[1] == drawn.shape[1] else values
            self._steppers[path] = (stepper, drawn, values, self.prior.bits(scores, drawn))
        return self._steppers[path]

    def _swaps(self, stepper: Stepper, path: str) -> Swaps | None:
        """Gradient search, where it is asked for or the network cannot go on; None for beam search."""
        wanted = self.method.search
        if wanted == "beam" or (wanted == "auto" and stepper.goes_on):
            return None
        try:
            return Swaps(self.model, path, self.prior, len(self.prompt) + self.method.length)
        except CannotRun:
            if wanted == "gradient":
                raise
            return None  # without a front to take gradients at, every string is read from its beginning

    def _climbed(self, swaps: Swaps, drawn: Tensor, sampled: Tensor, wish: Wish, seed: int) -> Tensor:
        """The best string that exchanges make of the best of those that were drawn, other ones for every seed."""
        order = (wish.sign * sampled).argsort(descending=True, stable=True)
        rows = order[seed :: max(1, self.method.seeds)][: self.method.width]
        generator = torch.Generator().manual_seed(self.request.seed * 1000 + seed)
        rounds, fixed = self.method.rounds, len(self.prompt)
        return swaps.climb(drawn[rows], wish, fixed, rounds, generator, lambda n: None)[0][0]

    def _row(self, stepper: Stepper, unit: Unit, wish: Wish, found: Sequence[NDArray[np.int64]], sampled: Tensor, cost: float,
             flat: bool, read: int) -> _Row:  # fmt: skip
        """The strings read once more, in the order of their scores."""
        assert unit.index is not None
        start = len(self.prompt)
        ids = torch.from_numpy(np.stack(found)).to(self.prompt.device)
        tracks, scores = stepper.tracks(ids, unit.index)
        surprises = self.prior.bits(scores, ids)
        told = tracks[:, start:] if stepper.placed else tracks[:, -1:]
        counted = max(1, self.method.length - (0 if start else 1))
        bits, values = surprises[:, start:].sum(1) / counted, wish.reached(told)
        order = wish.score(told, bits.to(told), torch.zeros_like(values)).argsort(descending=True, stable=True)
        known = torch.full_like(surprises, float("nan"))
        if self.prior.known:
            known[:, max(1, start) :] = surprises[:, max(1, start) :]
        bits = bits if self.prior.known else torch.full_like(bits, float("nan"))
        still = flat and float((values - sampled[0].to(values)).abs().max()) <= _SAME * (
            float(values.abs().max()) + 1e-12
        )
        ids, tracks, values, bits, known = (
            part[order.to(part.device)].cpu() for part in (ids, tracks, values, bits, known)
        )
        return _Row(ids.numpy(), values.float().numpy(), tracks.float().numpy(), bits.float().numpy(), known.float().numpy(),
                    sampled.float().cpu().numpy(), cost if self.prior.known else float("nan"), still, read)  # fmt: skip


def _compared(result: StringsResult, real: Real) -> StringsResult:
    """The result beside real text."""
    percentile, ratio = np.full_like(result.percentile, np.nan), np.full_like(result.ratio, np.nan)
    sign = -1.0 if result.minimize else 1.0
    for u, values in enumerate(real.values):
        if not len(values):
            continue
        percentile[u] = np.searchsorted(np.sort(sign * values), sign * result.values[u]) / len(values)
        best = float((sign * values).max()) * sign
        if sign * best > 0:
            ratio[u] = result.values[u] / best
    return replace(
        result, percentile=percentile, ratio=ratio, real=real.count, real_bits=real.bits, passages=real.passages,
        notes=(*result.notes, *real.notes),
    )  # fmt: skip

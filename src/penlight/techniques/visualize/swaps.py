"""Texts that drive a unit, by exchanging tokens: the gradient says which exchange gains most, a pass whether it does.

Ebrahimi, Rao, Lowd & Dou, HotFlip, ACL 2018 (arXiv:1712.06751).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penlight.models import Model, Probe
from penlight.models.front import front_view
from penlight.models.layers import run, text_layout, units_first
from penlight.models.probe import first_tensor, undisturbed
from penlight.techniques.visualize.beams import Wish, grams
from penlight.techniques.visualize.likelihood import Prior, log2

_MOVED = 6  # stretches that are moved or repeated at random in a round
_LONGEST = 4  # tokens of one
TRIED = 12  # exchanges of a string that are run in a round
_STALLS = 15  # rounds without a gain after which a string is left
_LANES = 256  # strings that are run at once
_SPREAD = 0.5  # standard deviations: how far the choice strays once the most promising exchanges gained nothing
_CHUNK = 512  # tokens of the vocabulary that are looked up at once


@dataclass(frozen=True, eq=False)
class _Heard:
    """Strings as they were run: values (N, T), surprises in bits (N, T), scores of the next token (N, T, V)."""

    tracks: Tensor
    bits: Tensor
    scores: Tensor | None


class Swaps:
    """The network from behind its front, for texts of one length."""

    def __init__(self, model: Model, path: str, prior: Prior, steps: int) -> None:
        self.model, self.path, self.prior = model, path, prior
        words = len(model.text.vocabulary) if model.text is not None else 0
        self.table = torch.cat([_looked_up(model, start, words) for start in range(0, words, _CHUNK)]).to(model.device)
        self.view, _ = front_view(model, np.arange(steps) % words)
        self.layer = self.view.layer(path)
        self.read_tokens = 0
        self._layout: str | None = None
        if prior.own:  # another number of texts than of tokens tells the axes apart
            ids = torch.zeros(3 if steps != 3 else 2, steps, dtype=torch.int64, device=model.device)
            with torch.inference_mode():
                self._hear(ids, self._signal(ids))

    def climb(self, ids: Tensor, wish: Wish, fixed: int, rounds: int, generator: torch.Generator,
              told: Callable[[int], None]) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Strings (K, T), of which the first `fixed` tokens stay, after up to so many rounds, and their scores (K,); best first."""
        ids, scores = ids.clone(), self._scored(ids, wish, fixed)
        stalls = torch.zeros(len(ids), dtype=torch.int64)
        for step in range(rounds):
            live = (stalls < _STALLS).nonzero().squeeze(1)
            if not len(live):
                break
            gains = self._gains(ids[live], wish, fixed)
            strayed = (stalls[live] > 0).to(gains)[:, None, None] * _SPREAD
            noise = torch.rand(gains.shape, generator=generator).clamp_min(1e-20).log().neg().log().neg().to(gains)
            exchanged = self._exchanged(ids[live], gains + strayed * noise, wish, fixed)
            tried = torch.cat([exchanged, _moved(ids[live], fixed, generator)], 1)
            found = self._scored(tried.flatten(0, 1), wish, fixed).view(tried.shape[:2])
            best = found.max(1)
            better = best.values > scores[live] + 1e-6
            chosen = tried[torch.arange(len(live)), best.indices]
            ids[live[better]], scores[live[better]] = chosen[better], best.values[better]
            stalls[live] = torch.where(better.cpu(), 0, stalls[live] + 1)
            told(step + 1)
        order = scores.argsort(descending=True, stable=True)
        return ids[order], scores[order]

    def _hear(self, ids: Tensor, signal: Tensor) -> _Heard:
        """Run strings (N, T), given as their signal (N, E, T)."""
        self.read_tokens += ids.numel()
        kept: list[Tensor] = []
        probe = Probe(self.view.network, {self.path: kept.append}, cut=not self.prior.own)
        with undisturbed(self.view.network), probe:
            output = run(probe, signal)  # type: ignore[arg-type]
        values = units_first(kept[0], self.layer.layout)
        tracks = values if values.ndim == 3 else values[..., None]
        scores = self._scores(output, ids) if self.prior.own else None
        return _Heard(tracks, self.prior.bits(scores, ids), scores)

    def _scores(self, output: object, ids: Tensor) -> Tensor:
        """(N, T, V) of what the network puts out."""
        tensor, words = first_tensor(output), len(self.table)
        assert tensor is not None
        text = self.model.text
        if tensor.ndim == 2:
            first = text is None or text.batch_first
            return tensor.view(*ids.shape, words) if first else tensor.view(*ids.T.shape, words).transpose(0, 1)
        if self._layout is None:
            self._layout = text_layout(tensor, (ids.shape[0], ids.shape[1]))
        return units_first(tensor, self._layout or "NLC").transpose(1, 2)

    def _signal(self, ids: Tensor) -> Tensor:
        return self.table[ids].transpose(1, 2)

    def _scored(self, ids: Tensor, wish: Wish, fixed: int) -> Tensor:
        """(N,): the scores of strings, without gradients."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(ids), _LANES):
                some = ids[start : start + _LANES]
                parts.append(self._score(some, self._hear(some, self._signal(some)), wish, fixed))
        return torch.cat(parts).clone()

    def _score(self, ids: Tensor, heard: _Heard, wish: Wish, fixed: int) -> Tensor:
        tracks = heard.tracks[:, wish.unit]
        tracks = tracks[:, fixed:] if tracks.shape[1] == ids.shape[1] else tracks
        counted = max(1, ids.shape[1] - fixed - (0 if fixed else 1))
        repeats = np.isin(grams(ids[:, fixed:].cpu().numpy(), len(self.table)), wish.taken).sum(1)
        return wish.score(tracks, heard.bits[:, fixed:].sum(1) / counted, torch.from_numpy(repeats).to(tracks))

    def _gains(self, ids: Tensor, wish: Wish, fixed: int) -> Tensor:
        """(N, T − fixed, tokens): what the score gains by each exchange, to first order; exactly, for the surprise of the token itself."""
        with torch.enable_grad():
            signal = self._signal(ids).detach().requires_grad_()
            heard = self._hear(ids, signal)
            (slope,) = torch.autograd.grad(self._score(ids, heard, wish, fixed).sum(), signal)
        counted = max(1, ids.shape[1] - fixed - (0 if fixed else 1))
        with torch.no_grad():
            slope = slope[:, :, fixed:]
            gains = torch.einsum("net,ve->ntv", slope, self.table[wish.tokens])
            gains -= torch.einsum("net,net->nt", slope, self._signal(ids)[:, :, fixed:])[..., None]
            gains += self._surprises(ids, heard, wish, fixed) * (wish.likelihood / counted)
            gains.masked_fill_(wish.tokens == ids[:, fixed:, None], -math.inf)
        return gains.cpu()

    def _surprises(self, ids: Tensor, heard: _Heard, wish: Wish, fixed: int) -> Tensor:
        """(N, T − fixed, tokens): bits that each token would save in its place."""
        if not self.prior.known:
            return torch.zeros(1, 1, 1, device=ids.device)
        table, tokens = self.prior.table, wish.tokens
        if self.prior.own:
            assert heard.scores is not None
            likely = log2(heard.scores.detach())[:, :-1]
        else:
            assert table is not None
            likely = table[ids[:, :-1]] if len(table) > 1 else table.expand(*ids[:, 1:].shape, -1)
        saved = torch.zeros(*ids.shape, len(tokens), device=ids.device)
        saved[:, 1:] = likely[..., tokens] - likely.gather(2, ids[:, 1:, None])
        if table is not None and len(table) > 1:  # the token behind it is another's successor then
            after = table[tokens][:, ids[:, 1:]].permute(1, 2, 0)
            saved[:, :-1] += after - table[ids[:, :-1], ids[:, 1:]][..., None]
        return saved[:, fixed:]

    @staticmethod
    def _exchanged(ids: Tensor, gains: Tensor, wish: Wish, fixed: int) -> Tensor:
        """(N, tried, T): the strings with each of the most promising exchanges, at most three of one place, and with several at once."""
        count = len(gains)
        best = gains.topk(min(3, gains.shape[2]), 2)
        flat = best.values.flatten(1).topk(min(TRIED, best.values.shape[1] * best.values.shape[2]), 1).indices
        place = flat // best.values.shape[2]
        token = wish.tokens[best.indices.flatten(1).gather(1, flat).to(ids.device)]
        tried = ids[:, None].repeat(1, flat.shape[1] + 1, 1)
        rows = torch.arange(count)[:, None]
        tried[rows, torch.arange(flat.shape[1]), place.to(ids.device) + fixed] = token
        for n in range(min(3, flat.shape[1])):  # the best few together: gains of places far apart add up
            tried[torch.arange(count), -1, place[:, n].to(ids.device) + fixed] = token[:, n]
        return tried


def _moved(ids: Tensor, fixed: int, generator: torch.Generator) -> Tensor:
    """(N, moved, T): the strings with a random stretch repeated over another place, or taken out and put back there.

    What takes two tokens at once has no slope; what stands in a string already need not be found again.
    """
    found = []
    for row in ids.cpu():
        own, size = row[fixed:], len(row) - fixed
        for n in range(_MOVED):
            length = 1 + int(torch.randint(min(_LONGEST, size), (1,), generator=generator))
            source, target = torch.randint(size - length + 1, (2,), generator=generator).tolist()
            stretch, new = own[source : source + length], own.clone()
            if n % 2:
                new[target : target + length] = stretch
            else:
                rest = torch.cat([own[:source], own[source + length :]])
                new = torch.cat([rest[:target], stretch, rest[target:]])
            found.append(torch.cat([row[:fixed], new]))
    return torch.stack(found).view(len(ids), _MOVED, -1).to(ids.device)


def _looked_up(model: Model, start: int, words: int) -> Tensor:
    """(tokens, E): what is looked up for some of the vocabulary."""
    ids = np.arange(start, min(start + _CHUNK, words))
    padded = np.concatenate([ids, np.zeros(max(0, 4 - len(ids)), np.int64)])
    _, signal = front_view(model, padded)
    return torch.from_numpy(signal.T[: len(ids)].copy())

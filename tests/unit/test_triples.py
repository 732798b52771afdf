"""What three parts do together: the sum it stands for, what it leaves alone, and that weights come nearer without it."""

from itertools import combinations

import numpy as np
import pytest
import torch

from penlight.techniques.explain import triples
from penlight.techniques.explain.sampler import balanced, binomial, every
from penlight.techniques.explain.surrogate import ridge
from penlight.techniques.explain.triples import Clearing, _process, without_triples


def signs(masks):
    return np.where(masks, 1.0, -1.0)


def drawn(parts, pairs, seed):
    stream = balanced(binomial(parts), np.random.default_rng(seed))
    return np.array([next(stream) for _ in range(2 * pairs)])


def planted(parts, seed, strength=1.0, noise=0.0):
    """(function of masks, its weights): some parts matter, alone, in pairs and in threes."""
    rng = np.random.default_rng(seed)
    alone = rng.normal(size=parts) * np.exp(rng.normal(size=parts))
    many = list(combinations(range(parts), 3))
    size = np.array([abs(alone[list(some)].prod()) for some in many])
    threes = rng.normal(size=len(many)) * size
    threes *= strength * np.linalg.norm(alone) / np.linalg.norm(threes)
    twos = rng.normal(size=(parts, parts)) / parts

    def f(masks):
        s = signs(masks)
        together = sum(t * s[:, i] * s[:, j] * s[:, k] for t, (i, j, k) in zip(threes, many, strict=True))
        return 3 + s @ alone + together + np.einsum("ni,ij,nj->n", s, twos, s) + noise * rng.normal(size=len(s))

    return f, 2 * alone


def test_the_process_is_the_sum_over_triples():
    rng = np.random.default_rng(0)
    s, share, root = signs(rng.random((9, 6)) < 0.5), rng.random(6), rng.random(9) + 0.5
    found = _process(*(torch.from_numpy(one) for one in (s, share, root))).numpy()
    t = s[:, None] * s[None]
    expected = sum(share[list(some)].prod() * t[..., list(some)].prod(-1) for some in combinations(range(6), 3))
    expected = expected / expected[0, 0] * np.outer(root, root)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_over_all_masks_the_weights_stay_as_they_were():
    masks = every(7)
    half = masks[masks[:, 0]]
    pairs = np.stack([half, ~half], 1).reshape(-1, 7)
    values = planted(7, 1)[0](pairs)
    cleared = without_triples(pairs, values, np.ones(len(half)))
    assert np.abs(cleared - values).max() > 0.1 * np.ptp(values)  # something was taken off
    weight = np.ones(len(pairs))
    np.testing.assert_allclose(
        ridge(pairs, cleared, weight, 0).weights, ridge(pairs, values, weight, 0).weights, atol=1e-9
    )
    np.testing.assert_allclose(cleared[::2] + cleared[1::2], values[::2] + values[1::2], atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_come_nearer_and_stay_unbiased(weighted):
    parts, pairs = 26, 150
    rng = np.random.default_rng(5)
    plain, better = [], []
    for seed in range(12):
        f, truth = planted(parts, 7)
        masks = drawn(parts, pairs, seed)
        weight = rng.uniform(0.5, 1.5, pairs) if weighted else np.ones(pairs)
        values = f(masks)
        cleared = without_triples(masks, values, weight)
        for told, kept in ((values, plain), (cleared, better)):
            kept.append(ridge(masks, told, weight.repeat(2), 0).weights - truth)
    plain, better = np.array(plain), np.array(better)
    assert (better**2).mean() < 0.75 * (plain**2).mean()
    assert np.linalg.norm(better.mean(0)) < 2 * np.sqrt((better**2).sum(1).mean() / len(better))


def test_the_fit_is_that_of_generalised_least_squares():
    """Weights fitted to what is left are those of the covariance that was found, by the textbook's formula."""
    parts, pairs = 24, 100
    f, _ = planted(parts, 3)
    masks = drawn(parts, pairs, 0)
    values, weight = f(masks), np.random.default_rng(0).uniform(0.5, 1.5, pairs)
    found = ridge(masks, without_triples(masks, values, weight), weight.repeat(2), 0).weights
    s, odd = signs(masks[::2]), (values[::2] - values[1::2]) / 2
    root = np.sqrt(weight / weight.mean())
    alone = np.abs(np.linalg.lstsq(s * root[:, None], odd * root, rcond=None)[0])
    nearest = np.inf
    for power in (0.5, 1.0, 1.5, 2.0):
        share = alone**power
        t = (s * share) @ s.T
        k = t**3 - 3 * t * (share**2).sum() + 2 * (s * share**3) @ s.T
        k = k / k[0, 0]
        for noise in (0.1, 0.3, 1.0, 3.0, 10.0):
            inverse = np.linalg.inv(k + np.diag(noise * weight.mean() / weight))
            expected = 2 * np.linalg.solve(s.T @ inverse @ s, s.T @ inverse @ odd)
            nearest = min(nearest, np.abs(found - expected).max())
    assert nearest < 1e-8


def test_linear_answers_few_draws_and_noise_are_left_as_they_are():
    masks = drawn(20, 120, 0)
    weight = np.ones(120)
    rng = np.random.default_rng(0)
    linear = masks @ rng.normal(size=20) + 2.0
    assert without_triples(masks, linear, weight) is linear
    constant = np.full(240, 1.5)
    assert without_triples(masks, constant, weight) is constant
    some = planted(20, 0)[0](masks)
    few = some[:60]
    assert without_triples(masks[:60], few, weight[:30]) is few
    assert without_triples(masks, some, np.zeros(120)) is some
    kept = [without_triples(masks, y, weight) is y for y in (linear + rng.normal(size=240) for _ in range(8))]
    assert np.mean(kept) >= 0.25  # white noise is taken for such in some cases, and otherwise for little else


def test_many_parts_and_many_pairs_are_fitted_too(monkeypatch):
    f, truth = planted(26, 7)
    masks = drawn(26, 300, 0)
    values, weight = f(masks), np.ones(300)

    def error(told):
        return np.linalg.norm(ridge(masks, told, weight.repeat(2), 0).weights - truth)

    joint = error(without_triples(masks, values, weight))
    monkeypatch.setattr(triples, "_BLOCK", 100)  # in blocks, which tell less
    apart = error(without_triples(masks, values, weight))
    assert joint < apart < error(values)
    wide = drawn(210, 230, 0)
    values = planted(12, 0)[0](wide[:, :12])
    assert np.isfinite(without_triples(wide, values, np.ones(230))).all()


def test_parts_that_were_always_drawn_together_do_no_harm():
    masks = drawn(20, 60, 0)
    masks[:, 1] = masks[:, 0]
    values = planted(20, 0)[0](masks)
    cleared = without_triples(masks, values, np.ones(60))
    assert np.isfinite(cleared).all()
    assert np.ptp(cleared) < 2 * np.ptp(values)


def test_power_and_noise_are_chosen_anew_as_draws_grow(monkeypatch):
    f, _ = planted(26, 7)
    masks = drawn(26, 200, 0)
    values, chosen, clear = f(masks), [], Clearing()
    likeliest = triples._likeliest
    monkeypatch.setattr(triples, "_likeliest", lambda *given: chosen.append(len(given[0])) or likeliest(*given))
    for pairs in (60, 60, 80, 100, 120, 200, 100):
        clear(masks[: 2 * pairs], values[: 2 * pairs], np.ones(pairs))
    assert chosen == [60, 100, 192]

"""Ranks against SciPy's: ties, signed zeros, values that are not finite, and rows left out."""

import numpy as np
import pytest
from scipy.stats import rankdata

from penlight.techniques.following import ranks, ranks_among


@pytest.mark.parametrize("count", [1, 2, 50, 3000, 140_000])
def test_ranks_among_some_rows_are_scipys(count):
    rng = np.random.default_rng(count)
    values = rng.normal(size=(count, 6)).astype(np.float32)
    values[:, 1] = np.round(values[:, 1], 1)  # ties, −0 among them
    values[:, 2] = 1
    values[:, 3] = np.maximum(values[:, 3], 0)
    values[-1, 4] = np.inf
    masks = [np.ones(count, bool), rng.random(count) < 0.5, np.arange(count) != count // 2, np.arange(count) == 0]
    for mask, found in zip(masks, ranks_among(values, masks), strict=True):
        rows = values[mask]
        assert found.shape == rows.shape[::-1]
        for u, column in enumerate(rows.T):
            if not np.isfinite(column).all():
                assert np.isnan(found[u]).all()
            elif len(column) > 1:
                wanted = (rankdata(column) - 1) / (len(column) - 1) - 0.5
                # many rows that lie evenly are ranked by bins
                np.testing.assert_allclose(found[u], wanted, atol=1e-6 if count < 100_000 else 1e-3)
        np.testing.assert_array_equal(found, ranks(rows))

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.evaluation.metrics.correlation import pearson, spearman


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([3, 1000]))
def test_resamples_equal_scipy_on_the_repeated_pairs(seed: int, pairs: int, distinct: int) -> None:
    """With many ties and with few; where scipy has no answer, there is none."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, distinct, pairs) / 7, rng.integers(0, distinct, pairs) * 1e3
    counts = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=15).astype(float)
    for ours, theirs in ((spearman, scipy.stats.spearmanr), (pearson, scipy.stats.pearsonr)):
        found = ours(first, second)(counts)
        for row, value in zip(counts, found, strict=True):
            a, b = (np.repeat(side, row.astype(int)) for side in (first, second))
            if np.ptp(a) == 0 or np.ptp(b) == 0:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(theirs(a, b)[0], abs=1e-9)


def test_constant_values_have_no_correlation() -> None:
    constant, other = np.full(9, 0.1), np.arange(9.0)
    for correlation in (spearman, pearson):
        assert np.isnan(correlation(constant, other)(np.ones((1, 9)))).all()
        assert np.isnan(correlation(other, constant)(np.ones((1, 9)))).all()

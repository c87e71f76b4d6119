"""Pooling, against the plain loop, with padding on either side."""

from __future__ import annotations

import pytest
import torch

from mmcl.models.pooling import pool


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", lambda tokens: tokens.mean(0)),
        ("max", lambda tokens: tokens.amax(0)),
        ("cls", lambda tokens: tokens[0]),
        ("last", lambda tokens: tokens[-1]),
    ],
)
def test_padding_does_not_matter(how, expected, side):
    torch.manual_seed(0)
    lengths = [1, 3, 5]
    texts = [torch.randn(length, 4) - 5 for length in lengths]  # negative: a max over padding would show
    states, mask = torch.full((3, 5, 4), 7.0), torch.zeros(3, 5, dtype=torch.int64)
    for row, tokens in enumerate(texts):
        where = slice(0, len(tokens)) if side == "right" else slice(5 - len(tokens), 5)
        states[row, where], mask[row, where] = tokens, 1
    torch.testing.assert_close(pool(states, mask, how), torch.stack([expected(tokens) for tokens in texts]))


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="mean, cls, max, last"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "median")

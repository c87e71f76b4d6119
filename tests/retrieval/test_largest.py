"""Selections by numpy against those of torch."""

from __future__ import annotations

import pytest
import torch

from mmcl.retrieval.largest import ascending_order, kth_largest, largest, where


@pytest.mark.parametrize("k", [1, 7, 50])
def test_the_largest_of_a_row_in_descending_order(k):
    torch.manual_seed(0)
    values = torch.randint(-(2**62), 2**62, (9, 50))
    values[0] = torch.iinfo(torch.int64).min
    assert torch.equal(largest(values, k), values.topk(k).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_the_kth_largest_of_a_row(k, dtype):
    torch.manual_seed(0)
    values = torch.randn(9, 50).to(dtype)
    values[0] = 1.0
    assert torch.equal(kth_largest(values, k), values.topk(k).values[:, -1].float())


@pytest.mark.parametrize("shape", [(9, 50), (1, 1), (0, 3), (3, 0)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_where_flags_are_set(shape, share):
    torch.manual_seed(0)
    flags = torch.rand(shape).T.contiguous().T.lt(share)  # in the other layout, too
    for given in (flags, flags.contiguous()):
        for got, expected in zip(where(given), given.nonzero(as_tuple=True), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("below", [40, 2**16, 2**16 + 1])
def test_an_order_that_ascends(below):
    torch.manual_seed(0)
    numbers = torch.randint(max(0, below - 50), below, (300,))
    order = ascending_order(numbers, below)
    assert torch.equal(numbers[order], numbers.sort().values)
    assert torch.equal(order.sort().values, torch.arange(300))

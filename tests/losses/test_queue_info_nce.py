"""InfoNCE against a queue: the paper's pseudocode in float64, lightly with its memory bank, and the gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmcl.losses import Blockwise, queue_info_nce


def pseudocode(query, key, queue, tau):
    """Algorithm 1 of the paper, up to the loss."""
    query, key, queue = (F.normalize(vectors, dim=1) for vectors in (query, key, queue))
    positive = torch.bmm(query[:, None], key[:, :, None]).squeeze(2)  # (N, 1)
    logits = torch.cat([positive, query @ queue.T], dim=1)  # (N, 1 + K)
    return F.cross_entropy(logits / tau, torch.zeros(len(query), dtype=torch.int64))


def vectors(*sizes, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(size, 5, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("tau", [0.07, 0.2])
def test_value_and_gradient_equal_the_paper_s_pseudocode_in_float64(tile, tau):
    query, key, queue = vectors(6, 6, 11)
    query.requires_grad_()
    ours = queue_info_nce(query, key, queue, tau, blockwise=Blockwise(tile))
    theirs = pseudocode(query, key, queue, tau)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, query)[0] for loss in (ours, theirs)), rtol=1e-10, atol=0)


def test_value_equals_lightly_s_with_its_memory_bank():
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.2, memory_bank_size=(16, 5))
    query, key = vectors(6, 6, dtype=torch.float32)
    loss.memory_bank(key, update=False)  # fills it
    theirs = loss(query, key)
    torch.testing.assert_close(queue_info_nce(query, key, loss.memory_bank.bank, 0.2), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("columns", [0, 2])
def test_duplicates_of_a_row_in_the_queue_are_no_negatives_of_it(columns):
    query, key, queue = vectors(3, 3, 4)
    ids, queue_ids = torch.tensor([7, 8, 9]), torch.tensor([9, 1, 7, 9])
    others = [[0, 1, 3], [0, 1, 2, 3], [1, 2]]
    expected = torch.stack(
        [pseudocode(query[i : i + 1], key[i : i + 1], queue[of], 0.1) for i, of in enumerate(others)]
    )
    if columns:
        ids, queue_ids = (torch.stack([torch.arange(len(of)) + n, of], dim=1) for n, of in ((20, ids), (40, queue_ids)))
    got = queue_info_nce(query, key, queue, 0.1, ids=ids, queue_ids=queue_ids)
    torch.testing.assert_close(got, expected.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_the_smallest_temperature_and_accumulated_in_float32(dtype):
    query, queue = vectors(4, 9, dtype=dtype)
    query.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = queue_info_nce(query, -query.detach(), queue, 0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()


def test_arguments_that_do_not_fit_are_named():
    query, key, queue = vectors(4, 4, 6)
    with pytest.raises(ValueError, match=r"query and key .*\(4, 5\)"):
        queue_info_nce(query, key[:3], queue)
    with pytest.raises(ValueError, match=r"negatives must be \(M, 5\)"):
        queue_info_nce(query, key, queue[:, :2])
    with pytest.raises(ValueError, match="ids and queue_ids go together"):
        queue_info_nce(query, key, queue, ids=torch.arange(4))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        queue_info_nce(query, key, queue, 0.0)

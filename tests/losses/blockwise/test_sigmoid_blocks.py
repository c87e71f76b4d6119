"""Losses whose tiles are sigmoids in bfloat16, against the dense ones in float64."""

from __future__ import annotations

import math

import pytest
import torch

from mmcl.losses import Blockwise, Negatives, Positives, info_nce
from mmcl.losses.blockwise import sigmoid_blocks
from mmcl.losses.blockwise.exchange import LocalExchange
from mmcl.losses.blockwise.plan import BlockPlan, ColumnLayout
from mmcl.runtime.device import multiplies_bfloat16

CPU = torch.device("cpu")
here = pytest.mark.skipif(not multiplies_bfloat16(CPU), reason="no bfloat16 products in this CPU")


@pytest.fixture
def computed(monkeypatch):
    """Numbers of tiles that were sigmoids, forward and backward."""
    shapes = []
    plain = sigmoid_blocks.sigmoid_of_product

    def watched(a, b, shift):
        shapes.append((len(a), len(b)))
        return plain(a, b, shift)

    monkeypatch.setattr(sigmoid_blocks, "sigmoid_of_product", watched)
    monkeypatch.setattr(sigmoid_blocks, "_fast", lambda: True)
    return shapes


def compare(loss, tensors, dtype, tile):
    """The loss, and its gradients by all tensors, in tiles of sigmoids and in one piece in float64."""
    found = []
    for kind, size in ((torch.float64, None), (dtype, tile)):
        leaves = [tensor.to(kind if tensor.ndim else torch.float64, copy=True).requires_grad_() for tensor in tensors]
        value = loss(*leaves, blockwise=Blockwise(size))
        value.backward()
        found.append([value.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    (expected, *exact), (value, *gradients) = found
    assert abs(value - expected) < 1e-3 * max(1.0, expected)
    for gradient, wanted in zip(gradients, exact, strict=True):
        assert (gradient - wanted).norm() < 1e-2 * wanted.norm()


@here
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("tile", [16, 100])
def test_info_nce_stays_within_a_hundredth_of_the_gradient(dtype, symmetric, tile, computed, monkeypatch):
    torch.manual_seed(0)
    q = torch.randn(75, 96).bfloat16()
    k = (q.float() + 2 * torch.randn(75, 96)).bfloat16()
    more, owner, ids = torch.randn(41, 96).bfloat16(), torch.arange(41) % 40, torch.arange(75) // 2
    if dtype == torch.float32:
        monkeypatch.setattr("mmcl.runtime.products.float32_setting", lambda device: "bf16")  # torch's "medium"

    def loss(q, k, more, tau, blockwise):
        negatives = Negatives(more, owner=owner, ids=1000 + torch.arange(41), weight=2.5)
        return info_nce(q, k, tau, ids=ids, negatives=negatives, symmetric=symmetric, blockwise=blockwise)

    for tau in (0.04, 0.07, 1.0):
        computed.clear()
        compare(loss, [q, k, more, torch.tensor(tau)], dtype, tile)
        assert computed
        assert len(computed) == 2 * (math.ceil(75 / tile) ** 2 + math.ceil(75 / tile) * math.ceil(41 / tile))


@here
def test_tiles_larger_than_a_block_of_rows_and_columns_that_take_no_gradient(computed, monkeypatch):
    monkeypatch.setattr(sigmoid_blocks, "_ROWS", 24)
    torch.manual_seed(0)
    q, k = torch.randn(330, 64).bfloat16(), torch.randn(330, 64).bfloat16()
    compare(lambda q, blockwise: info_nce(q, k.to(q.dtype), 0.1, blockwise=blockwise), [q], torch.bfloat16, 64)
    assert max(computed) == (24, 64)


@here
def test_groups_of_positives_are_of_sigmoids_too(computed):
    torch.manual_seed(0)
    q, labels = torch.randn(60, 64).bfloat16(), torch.arange(60) // 3
    compare(
        lambda q, blockwise: info_nce(q, None, 0.2, positives=Positives(labels), blockwise=blockwise), [q], q.dtype, 16
    )
    assert computed


@here
@pytest.mark.parametrize(("duplicates", "weight"), [(False, None), (True, None), (False, 0.5)])
def test_logits_that_turn_out_too_large_are_computed_otherwise(duplicates, weight, computed):
    """At τ = 0.01, where the positives are not near and some negative is."""
    torch.manual_seed(0)
    q, noise = torch.randn(2, 60, 96, dtype=torch.float64)
    k = q + 2 * noise
    if duplicates:
        k[7] = q[8]
    more = torch.cat([q[5:6] if weight else noise[5:6], torch.randn(9, 96, dtype=torch.float64)]).bfloat16()
    negatives = None if weight is None else {"owner": torch.arange(5, 15), "weight": weight}

    def loss(q, k, more, blockwise):
        given = None if negatives is None else Negatives(more, **negatives)
        return info_nce(q, k, 0.01, negatives=given, blockwise=blockwise)

    found = []
    for dtype, tile in ((torch.float64, None), (torch.bfloat16, 16)):
        leaves = [x.bfloat16().to(dtype).requires_grad_() for x in (q, k, more)]
        value = loss(*leaves, blockwise=Blockwise(tile))
        value.backward()
        found.append((value.detach().double(), *(leaf.grad.double() for leaf in leaves[:2])))
    (expected, *exact), (value, *gradients) = found
    assert abs(value - expected) < 1e-2 * max(1.0, expected)
    for gradient, wanted in zip(gradients, exact, strict=True):
        assert (gradient - wanted).norm() < 5e-2 * wanted.norm()  # as far off as by products without sigmoids
    once = math.ceil(60 / 16) ** 2
    assert len(computed) == (
        once if duplicates else 2 * once + (math.ceil(10 / 16) * math.ceil(60 / 16) if weight else 0)
    )


@pytest.mark.parametrize(
    ("largest", "least", "dim", "precision", "expected"),
    [
        (14.3, 14.3, 512, "bfloat16", 23.0),
        (14.3, 14.3, 512, "full", None),
        (14.3, 14.3, 63, "bfloat16", None),  # rounding shows
        (50.0, 15.0, 512, "bfloat16", 58.0),
        (50.0, 20.0, 512, "bfloat16", 53.0),  # above which what matters to some positive would be 0
        (50.0, 41.0, 512, "bfloat16", None),
        (100.0, 10.0, 512, "bfloat16", 63.0),
        (100.0, -36.0, 512, "bfloat16", 68.0),
        (30.0, None, 512, "bfloat16", 38.0),
        (33.0, None, 512, "bfloat16", None),
        (300.0, -290.0, 512, "bfloat16", None),  # half of the bound would be too large
    ],
)
def test_a_shift_keeps_all_logits_below_and_what_matters_above_the_smallest_number(
    largest, least, dim, precision, expected, monkeypatch
):
    monkeypatch.setattr(sigmoid_blocks, "_fast", lambda: True)
    layout = ColumnLayout([4], True)
    plan = BlockPlan("dot", 16, LocalExchange(4), layout, layout, precision)
    assert sigmoid_blocks.sigmoid_shift(largest, least, torch.zeros(4, dim), plan) == expected


def test_without_amx_tiles_are_not_of_sigmoids(monkeypatch):
    layout = ColumnLayout([4], True)
    plan = BlockPlan("dot", 16, LocalExchange(4), layout, layout, "bfloat16")
    for amx, expected in ((True, 23.0), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=amx: value)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        assert sigmoid_blocks.sigmoid_shift(14.3, 14.3, torch.zeros(4, 64), plan) == expected

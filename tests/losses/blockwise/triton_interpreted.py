"""The Triton kernels against dense formulas in float64. Run by test_triton_blocks.py, with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses import Blockwise, Negatives, Positives, info_nce, sigmoid
from mmcl.losses.blockwise import triton_blocks
from mmcl.losses.blockwise.triton_blocks import Logits


@pytest.fixture
def small_blocks(monkeypatch):
    """Tiles and launches so small that a few dozen rows take several of both."""
    monkeypatch.setattr(triton_blocks, "PROGRAM_TILE", 32)
    monkeypatch.setattr(triton_blocks, "FORWARD_BLOCK", 64)
    monkeypatch.setattr(triton_blocks, "BACKWARD_BLOCK", 48)


def unit(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(n, d), dim=1).to(dtype)


def problem(n: int, m: int, d: int, scale: float = 20.0, id_columns: int = 0, dtype=torch.float32, own_weight=0.0):
    """Random vectors and owners, and ids of which many agree."""
    ids = [torch.randint(2**40, 2**40 + 2 * n, (k, id_columns)) if id_columns else None for k in (n, m)]
    owner = torch.full((m,), -1)
    owner[torch.randperm(m)[:n]] = torch.arange(min(n, m))
    return Logits(unit(n, d, dtype), unit(m, d, dtype), torch.tensor(scale), *ids, owner, own_weight)


class Dense:
    """The same in float64, with gradients by autograd."""

    def __init__(self, logits: Logits) -> None:
        self.x, self.y, self.scale = (
            t.double().requires_grad_() for t in (logits.rows, logits.columns, logits.scale)
        )  # fmt: skip
        z = self.scale * self.x @ self.y.T
        if logits.owner is not None:
            own = logits.owner[None, :] == torch.arange(len(z))[:, None]
            z = torch.where(own, z + torch.tensor(logits.own_weight).log(), z)
        if logits.row_ids is not None:
            ids = (x.reshape(len(x), -1) for x in (logits.row_ids, logits.column_ids))
            z = z.masked_fill((next(ids)[:, None] == next(ids)[None, :]).any(dim=2), -torch.inf)
        self.z = z

    def gradients(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, [self.x, self.y, self.scale]))


def weighed(lse: Tensor, grad: Tensor) -> Tensor:
    """The sum of (N,) log-sum-exps times ``grad``, of those that are finite."""
    finite = lse.isfinite()
    return (lse[finite] * grad[finite].double()).sum()


def gradients(logits: Logits, backward) -> list[Tensor]:
    """By rows, columns and scale, from ``backward(d_rows)``."""
    d_rows = torch.zeros(logits.rows.shape)
    d_columns = backward(d_rows)
    return [d_rows * logits.scale, d_columns, (d_rows * logits.rows.float()).sum(dtype=torch.float64)]


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


def compare(logits: Logits, tolerance: float, *, shift: float | None = None, both: bool = True) -> None:
    """Log-sum-exps and gradients are those of the dense form."""
    exact = Dense(logits)
    expected = exact.z.logsumexp(dim=1), exact.z.logsumexp(dim=0)
    found = triton_blocks.log_sum_exp(logits, shift=shift, both=both)
    assert (found[1] is not None) == both
    row_grad, column_grad = torch.randn(len(logits.rows)), torch.randn(len(logits.columns))
    value, statistics = weighed(expected[0], row_grad), (found[0], row_grad)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-5)
    if both:
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-5)
        value, statistics = value + weighed(expected[1], column_grad), (*statistics, found[1], column_grad)
    got = gradients(logits, lambda d: triton_blocks.log_sum_exp_backward(logits, d, *statistics, shift=shift))
    *wanted, d_scale = exact.gradients(value)
    for ours, theirs in zip(got[:2], wanted, strict=True):
        assert ours.dtype == torch.float32
        assert error(ours, theirs) < tolerance
    size = abs(row_grad).sum() + abs(column_grad).sum()  # of sums of either sign
    assert got[2].item() == pytest.approx(d_scale.item(), abs=tolerance * size.item())


@pytest.mark.parametrize(("seed", "shift"), zip(range(8), [None, 3.0] * 4, strict=True))
def test_values_and_gradients_equal_the_dense_form(small_blocks, seed, shift):
    torch.manual_seed(seed)
    n, extra, d = (int(torch.randint(low, high, ())) for low, high in ((2, 70), (0, 30), (1, 90)))
    compare(problem(n, n + extra, d, id_columns=seed % 4, own_weight=seed % 3 / 2), 1e-5, shift=shift, both=seed < 6)


@pytest.mark.parametrize("shift", [None, 3.0])
def test_tiles_of_the_real_size(shift):
    torch.manual_seed(0)
    compare(problem(130, 261, 70, id_columns=1), 1e-5, shift=shift)


def test_columns_that_learn_nothing_cost_no_product(small_blocks):
    logits = problem(40, 50, 9)
    lse, _ = triton_blocks.log_sum_exp(logits, both=False)
    found = [torch.zeros(40, 9), torch.zeros(40, 9)]
    for d_rows, required in zip(found, (True, False), strict=True):
        d_columns = triton_blocks.log_sum_exp_backward(
            logits, d_rows, lse, torch.ones(40), columns_require_grad=required
        )
        assert (d_columns is not None) == required
    assert torch.equal(*found)


def test_nobody_owns_anything_and_more_rows_than_columns(small_blocks):
    torch.manual_seed(0)
    logits = Logits(unit(50, 9), unit(20, 9), torch.tensor(5.0))
    compare(logits, 1e-5)
    compare(logits, 1e-5, both=False)


@pytest.mark.parametrize("shift", [None, 0.0])
def test_bfloat16_products(small_blocks, shift):
    torch.manual_seed(0)
    compare(problem(50, 70, 36, id_columns=1, dtype=torch.bfloat16), 5e-3, shift=shift)


def test_nothing_overflows_at_temperature_one_hundredth(small_blocks):
    """Logits of ±100; and rows and columns that have no candidate."""
    torch.manual_seed(0)
    x = F.normalize(torch.cat([torch.ones(20, 4), -torch.ones(20, 4)]) + 0.1 * torch.randn(40, 4), dim=1)
    compare(Logits(x, -x[:30], torch.tensor(100.0), owner=torch.arange(30)), 1e-4)
    ids = torch.arange(40) // 39, torch.zeros(30, dtype=torch.int64)
    compare(Logits(x, -x[:30], torch.tensor(100.0), *ids), 1e-4)
    for shift in (None, 0.0):
        nothing = Logits(x[:5], x[:7], torch.tensor(1.0), torch.zeros(5).long(), torch.zeros(7).long())
        row_lse, column_lse = triton_blocks.log_sum_exp(nothing, shift=shift)
        assert row_lse.isneginf().all()
        assert column_lse.isneginf().all()
        given = nothing, torch.zeros(5, 4), row_lse, torch.ones(5), column_lse, torch.ones(7)
        assert not triton_blocks.log_sum_exp_backward(*given, shift=shift).any()
        assert not given[1].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_softplus_equals_the_dense_form(small_blocks, dtype, tolerance):
    torch.manual_seed(0)
    logits, bias = problem(45, 60, 33, scale=12.0, id_columns=2, dtype=dtype), torch.tensor(-7.0)
    exact, row_grad = Dense(logits), torch.randn(45)
    expected = F.softplus(exact.z + bias.double())
    value, slope = triton_blocks.softplus_sum(logits, bias)
    torch.testing.assert_close(value, expected.sum(dim=1), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(slope, (exact.z + bias.double()).sigmoid().sum(dim=1), rtol=1e-5, atol=0.0)
    got = gradients(logits, lambda d: triton_blocks.softplus_sum_backward(logits, bias, d, row_grad))
    for ours, theirs in zip(got, exact.gradients((expected.sum(dim=1) * row_grad.double()).sum()), strict=True):
        assert error(ours, theirs) < tolerance


def test_softplus_keeps_terms_that_added_to_one_would_vanish(small_blocks):
    rows = torch.tensor([[1.0], [0.0]])
    value, slope = triton_blocks.softplus_sum(Logits(rows, rows, torch.tensor(1.0)), torch.tensor(-20.0))
    logits = rows.double() @ rows.T.double() - 20.0
    torch.testing.assert_close(value, F.softplus(logits).sum(dim=1), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(slope, logits.sigmoid().sum(dim=1), rtol=1e-5, atol=0.0)


def losses(kind: str, dtype=torch.float64, tile=None) -> list[Tensor]:
    """One of the losses that users call, and all its gradients."""
    torch.manual_seed(0)
    a, b, more = (torch.randn(n, 24, dtype=torch.float64) for n in (50, 50, 20))
    ids, key_ids = torch.randint(0, 40, (50, 2)), torch.randint(0, 40, (50, 2))
    # Smaller numbers first, for conversions to be of the same random values.
    a, b, more, temperature, bias = (
        x.to(dtype).requires_grad_() for x in (a, b, more, torch.tensor(0.1).double(), torch.tensor(-5.0).double())
    )
    blockwise = Blockwise(tile)
    extra = {"ids": (ids, key_ids), "blockwise": blockwise}
    if kind == "sigmoid":
        inputs = [a, b, temperature, bias]
        value = sigmoid(a, b, temperature, bias, ids=ids, blockwise=blockwise)
    elif "positives" in kind:
        inputs = [a, b, temperature]
        positives = Positives(torch.arange(len(a)) % 9, torch.arange(len(b)) % 7, compete=kind == "positives")
        value = info_nce(a, b, temperature, positives=positives, blockwise=blockwise)
        value = value + info_nce(a, None, temperature, positives=Positives(positives.query), blockwise=blockwise)
    elif kind == "clip":
        inputs = [a, b, temperature]
        value = info_nce(a, b, temperature, **extra)
    else:
        inputs = [a, b, more, temperature]
        extra["negatives"] = Negatives(more, torch.randint(0, 40, (20, 2)), torch.arange(20) * 2, weight=2.0)
        value = info_nce(a, b, temperature, **extra, symmetric=False, similarity="dot")
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("kind", ["clip", "hard negatives", "positives", "positives apart", "sigmoid"])
def test_the_losses_go_through_the_kernels(small_blocks, monkeypatch, kind):
    launched = []
    launch = triton_blocks._Block.launch
    monkeypatch.setattr(triton_blocks._Block, "launch", lambda *args: launched.append(args[1]) or launch(*args))
    expected = losses(kind)
    assert not launched
    for got, want in zip(losses(kind, torch.float32, tile=32), expected, strict=True):
        assert error(got, want) < 1e-5
    assert len({kernel.fn.__name__ for kernel in launched}) == (1 if kind == "sigmoid" else 2)


@pytest.mark.parametrize("columns", [1, 2])
def test_no_rows_or_no_negatives_are_an_empty_matrix(small_blocks, columns):
    """A process may have no rows of its own, and a queue none of its share."""
    full, none = unit(9, 8), unit(9, 8)[:0]
    ids = torch.arange(9)[:, None].expand(9, columns)
    with_none = info_nce(full, full, ids=ids, negatives=Negatives(none, ids[:0]), blockwise=Blockwise(4))
    assert with_none.item() == pytest.approx(info_nce(full, full, ids=ids, blockwise=Blockwise(None)).item(), rel=1e-4)
    assert triton_blocks.log_sum_exp(Logits(none, full, torch.tensor(5.0), ids[:0], ids))[1].isneginf().all()

"""NT-Xent against the equation in plain loops in float64, on one process and on two."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import Blockwise, nt_xent


def reference(a, b, tau, ids=None, decoupled=False):
    z = np.concatenate([a, b])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(a), 0.0
    for i in range(2 * n):
        positive = math.exp(z[i] @ z[(i + n) % (2 * n)] / tau)
        others = [
            math.exp(z[i] @ z[j] / tau)
            for j in range(2 * n)
            if j % n != i % n and (ids is None or not np.any(ids[i % n] == ids[j % n]))
        ]
        if not decoupled:
            total -= math.log(positive / (positive + sum(others)))
        elif others:
            total -= math.log(positive / sum(others))
    return total / (2 * n)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    d=st.integers(2, 7),
    columns=st.integers(0, 2),
    tau=st.sampled_from([0.1, 0.5]),
    tile=st.sampled_from(["auto", None, 4]),
    decoupled=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equation_in_float64(n, d, columns, tau, tile, decoupled, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(n, d))
    ids = rng.integers(0, 5, size=(n, columns)) if columns else None
    given_ids = None if ids is None else torch.tensor(ids[:, 0] if columns == 1 else ids)
    options = {"ids": given_ids, "decoupled": decoupled, "blockwise": Blockwise(tile)}
    got = nt_xent(torch.tensor(a), torch.tensor(b), tau, **options)
    assert got.item() == pytest.approx(reference(a, b, tau, ids, decoupled), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_value_and_gradient_equal_lightly_s(decoupled):
    losses = pytest.importorskip("lightly.loss")
    loss = (losses.DCLLoss if decoupled else losses.NTXentLoss)(temperature=0.2)
    torch.manual_seed(0)
    views = [torch.randn(8, 5, requires_grad=True) for _ in range(2)]
    ours = nt_xent(*views, 0.2, decoupled=decoupled)
    results = [(value, *torch.autograd.grad(value, views)) for value in (ours, loss(*views))]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("tile", [None, 3])
def test_gradients_in_float64(tile, decoupled):
    torch.manual_seed(1)
    a, b = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *given: nt_xent(*given, decoupled=decoupled, blockwise=Blockwise(tile)), (a, b, tau)
    )


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_the_smallest_temperature_and_accumulated_in_float32(dtype, n, decoupled):
    torch.manual_seed(2)
    a = torch.randn(n, 16).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(a, -a.detach(), 0.01, decoupled=decoupled)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("tile", [None, 2])
def test_decoupled_negatives_far_below_the_positive_count(tile):
    view = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # two negatives of -100 beside a positive of 100
    loss = nt_xent(view, view, 0.01, decoupled=True, blockwise=Blockwise(tile))
    assert loss.item() == pytest.approx(math.log(2) - 200, rel=1e-6)


def test_views_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"view_a and view_b .*\(3, 4\)"):
        nt_xent(torch.randn(3, 4), torch.randn(4, 4))


TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
from mmcl.losses import Blockwise, nt_xent

torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
a, b = torch.randn(2, 9, 4, dtype=torch.float64).unbind()
rows = slice(0, 4) if rank == 0 else slice(4, 9)
views = [view.requires_grad_() for view in (a, b)]
for decoupled in (False, True):
    value = nt_xent(*views, 0.3, decoupled=decoupled)
    expected = [value, *(grad[rows] for grad in torch.autograd.grad(value, views))]
    for across in ("gather", "ring"):
        own = [view.detach()[rows].requires_grad_() for view in views]
        value = nt_xent(*own, 0.3, decoupled=decoupled, blockwise=Blockwise(tile=3, across=across))
        got = [value, *(grad / 2 for grad in torch.autograd.grad(value, own))]
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_with_unequal_rows_equal_one(tmp_path):
    commands = [[sys.executable, "-c", TWO_PROCESSES, str(rank), tmp_path / "store"] for rank in range(2)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors

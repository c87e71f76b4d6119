from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmcl.methods.outputs import Outputs, Rows
from mmcl.methods.parts.online_probe import PROBE, OnlineProbe

CODES = np.array([-7, 40, 3_000_000_000_000], dtype=np.int64)  # as hashes of labels are


def outputs(vectors, labels):
    return Outputs(
        {"image": vectors}, Rows(torch.zeros(len(labels), 1), labels={PROBE: torch.from_numpy(CODES[labels])})
    )


def batches(steps, scale=1.0):
    """Two draws of each of 32 rows of three classes, in 24 dimensions that go together."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 24, generator=random)
    for step in range(steps):
        labels = np.random.default_rng(step).integers(0, 3, 32)
        noise = torch.randn(64, 24, generator=random)
        yield scale * (centres[labels].repeat_interleave(2, 0) + noise + 5), labels


def test_steps_equal_those_of_torch():
    probe, linear, norm = OnlineProbe(CODES, 24, "image", 2), nn.Linear(24, 3), nn.BatchNorm1d(24, affine=False)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(linear.parameters(), lr=1.0, momentum=0.9)
    for vectors, labels in batches(20):
        logits = linear(norm(vectors) / 24**0.5)
        own = torch.from_numpy(labels).repeat_interleave(2)
        loss = nn.functional.cross_entropy(logits, own)
        found = probe.update(outputs(vectors, labels))
        assert found["probe_loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert found["probe_accuracy"] == pytest.approx((logits.argmax(1) == own).float().mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(probe.weight, linear.weight.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probe.bias, linear.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_it_learns_whatever_the_scale(scale):
    probe = OnlineProbe(CODES, 24, "image", 2)
    found = [probe.update(outputs(vectors, labels))["probe_accuracy"] for vectors, labels in batches(150, scale)]
    assert found[0] < 0.6
    assert np.mean(found[-20:]) > 0.95


def test_it_stays_finite_where_all_dimensions_are_one():
    probe, random = OnlineProbe(CODES, 24, "image", 1), np.random.default_rng(0)
    for _ in range(300):
        labels = random.integers(0, 3, 32)
        vectors = torch.from_numpy(random.standard_normal((32, 1))).float().expand(32, 24)
        loss = probe.update(outputs(vectors, labels))["probe_loss"]
    assert loss < 3
    probe.update(outputs(torch.ones(32, 24), labels))
    assert torch.isfinite(probe.weight).all()


def test_no_gradient_reaches_the_embeddings():
    vectors, labels = next(iter(batches(1)))
    vectors.requires_grad_()
    OnlineProbe(CODES, 24, "image", 2).update(outputs(vectors, labels))
    assert vectors.grad is None

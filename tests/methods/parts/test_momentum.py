"""The momentum copy, against the equation and lightly's update."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmcl.methods.parts.momentum import MomentumCopy


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def learn(module):
    """A change of the weights, and of the running statistics."""
    module.train()
    module(torch.randn(8, 3).double())
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def test_follows_weights_and_running_statistics_as_the_equation_says():
    source = net()
    follower = MomentumCopy({"net": source}, 0.9)
    expected = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    for _ in range(4):
        learn(source)
        follower.update()
        for name, tensor in source.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * tensor if tensor.is_floating_point() else tensor.clone()
    got = follower.parts["net"].state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-12, atol=1e-14)


def test_follows_weights_as_lightly_s_update_does():
    update = pytest.importorskip("lightly.models.utils").update_momentum
    source = net()
    theirs, follower = copy.deepcopy(source), MomentumCopy({"net": source}, 0.99)
    for _ in range(5):
        learn(source)
        follower.update()
        update(source, theirs, m=0.99)
    for ours, other in zip(follower.parts.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-14)


def test_without_momentum_it_is_the_module_as_it_is():
    source = net()
    follower = MomentumCopy({"net": source}, 0.0)
    learn(source)
    follower.update()
    x = torch.randn(2, 3).double()
    torch.testing.assert_close(follower("net", x), source.eval()(x))
    for momentum in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            MomentumCopy({"net": source}, momentum)


def test_neither_learns_nor_leaves_evaluation_mode_and_is_no_part_of_what_it_follows():
    source = net()
    follower = MomentumCopy({"net": source}, 0.9).train()
    x = torch.randn(2, 3).double()
    assert not follower("net", x).requires_grad
    assert torch.equal(follower("net", x), follower("net", x))
    assert not any(parameter.requires_grad for parameter in follower.parameters())
    assert source.training
    assert len(list(source.state_dict())) == len(list(follower.state_dict()))


def test_what_is_frozen_is_shared_and_not_in_checkpoints():
    source = net()
    source[0].requires_grad_(False)
    follower = MomentumCopy({"net": source}, 0.9)
    assert follower.parts["net"][0].weight is source[0].weight
    assert follower.parts["net"][3].weight is not source[3].weight
    assert not {name for name in follower.checkpointed() if name.startswith("parts.net.0.")}
    source[3].requires_grad_(False)  # later: as training.groups does
    assert follower.checkpointed() == {f"parts.net.1.{name}" for name in source[1].state_dict()}


def test_modules_that_share_a_part_share_its_copy():
    tower, heads = nn.Linear(3, 3), [nn.Linear(3, 2), nn.Linear(3, 2)]
    follower = MomentumCopy({n: nn.Sequential(tower, head) for n, head in zip("ab", heads, strict=True)}, 0.5)
    assert follower.parts["a"][0] is follower.parts["b"][0]
    before = tower.weight.detach().clone()
    tower.weight.data.add_(1.0)
    follower.update()
    torch.testing.assert_close(follower.parts["a"][0].weight, before + 0.5)  # once, not twice


def test_infinite_constants_stay_what_they_are():
    """open_clip's causal mask is a buffer of infinities, apart from the state."""
    source = nn.Linear(2, 2)
    source.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1), persistent=False)
    follower = MomentumCopy({"net": source}, 0.5)
    follower.update()
    assert torch.equal(follower.parts["net"].mask, source.mask)

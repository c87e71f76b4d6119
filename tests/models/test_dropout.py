"""The faster dropout: its rate, its scale, its gradient, and that a seed repeats it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmcl.models.dropout import Dropout, speed_up_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_and_the_scale_of_the_rest(rate, dtype):
    torch.manual_seed(0)
    out = Dropout(rate)(torch.ones(1001, 301, dtype=dtype))
    kept = out[out != 0]
    assert abs(1 - kept.numel() / out.numel() - rate) < 5 * (rate * (1 - rate) / out.numel()) ** 0.5 + 1e-5
    torch.testing.assert_close(kept.double(), torch.full_like(kept, 1 / (1 - rate)).double(), rtol=1e-2, atol=0)
    assert abs(float(out.double().mean()) - 1) < 0.02


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    zero = (Dropout(0.3)(torch.ones(200_000)) == 0).double() - 0.3
    for distance in (1, 2, 3, 4, 8):  # four of them share the generator's number
        assert abs(float((zero[distance:] * zero[:-distance]).mean())) < 0.002


def test_the_gradient_is_that_of_what_was_kept_and_a_seed_repeats_it():
    layer, features = Dropout(0.4), torch.randn(7, 9, requires_grad=True)
    torch.manual_seed(3)
    out = layer(features)
    out.sum().backward()
    scale = out.detach() / features.detach()
    torch.testing.assert_close(features.grad, scale)
    torch.manual_seed(3)
    torch.testing.assert_close(layer(features), out)


def test_in_evaluation_and_at_no_rate_nothing_happens():
    features = torch.randn(5, 3)
    assert torch.equal(Dropout(0.4).eval()(features), features)
    assert torch.equal(Dropout(0.0)(features), features)
    assert torch.equal(Dropout(1.0)(features), torch.zeros(5, 3))


def test_it_takes_the_place_of_torchs():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.3))).eval()
    names = list(net.state_dict())
    speed_up_dropout(net)
    found = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    assert [(type(module), module.p, module.training) for module in found] == [
        (Dropout, 0.2, False),
        (Dropout, 0.3, False),
    ]
    assert list(net.state_dict()) == names

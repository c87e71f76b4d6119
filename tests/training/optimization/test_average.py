"""The running average of the weights, against torch's own."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel

from mmcl.training.optimization.average import WARMUP_STEPS, WeightAverage


def test_equals_torchs_averaged_model_with_the_same_decays():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    steps = []

    def blend(averaged, current, _count):
        return averaged.lerp(current, 1 - min(0.9, steps[-1] / (steps[-1] + WARMUP_STEPS)))

    theirs = AveragedModel(net, avg_fn=blend)
    theirs.update_parameters(net)  # its first call copies
    ours = WeightAverage(net, set(net.state_dict()), 0.9)
    for step in range(1, 30):
        steps.append(step)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update(step)
        theirs.update_parameters(net)
    for name, parameter in theirs.module.named_parameters():
        torch.testing.assert_close(ours.values[name], parameter.detach())


def test_the_average_is_there_within_and_the_weights_afterwards():
    net = torch.nn.Linear(2, 2)
    average = WeightAverage(net, {"weight"}, 0.5)
    mean = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1.0)
        net.bias.add_(1.0)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    with average.applied():
        assert torch.equal(net.weight, mean)
        assert torch.equal(net.bias, bias)
    assert torch.equal(net.weight, weight)

"""Parameter groups and schedules."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from mmcl.config.schema import TrainingConfig
from mmcl.training.optim import build_optimizer, learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_equal_transformers(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = {
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, 10, 50),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, 10, 50),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, 10),
    }[schedule]()
    config = TrainingConfig(lr=0.3, schedule=schedule, warmup=10)
    for step in range(50):
        expected = theirs.get_last_lr()[0]
        ours = learning_rate(config, step, 50)
        if step < 10:  # theirs starts at zero, so that its first step learns nothing; ours is one step ahead
            assert ours == pytest.approx(0.3 * (step + 1) / 10)
        else:
            assert ours == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_warmup_below_one_is_a_share_of_the_steps():
    shares, counts = TrainingConfig(warmup=0.2), TrainingConfig(warmup=10)
    assert [learning_rate(shares, s, 50) for s in range(50)] == [learning_rate(counts, s, 50) for s in range(50)]


def test_gains_biases_and_temperature_do_not_decay():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    module.register_parameter("logit_scale", torch.nn.Parameter(torch.tensor(1.0)))
    module[2].weight.requires_grad_(False)
    optimizer = build_optimizer(module, TrainingConfig(weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: decay.get(id(p)) for name, p in module.named_parameters()}
    assert named == {
        "logit_scale": 0.0,
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": None,
        "2.bias": 0.0,
    }

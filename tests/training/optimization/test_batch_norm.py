"""Batch normalisation in training: which statistics it takes, and how often these move."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from mmcl.config.load import load_config
from mmcl.config.training import TokenLimit, TrainingConfig
from mmcl.data.batches.batch import Batch
from mmcl.methods import Method, Step
from mmcl.models.activations import checkpoint_activations
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.build import build_method
from mmcl.training.optimization.batch_norm import learning_layers, prepare_batch_norm, warn_of_statistics
from mmcl.training.optimization.step import TrainStep

CPU = torch.device("cpu")
ROWS = 12


@pytest.fixture
def method(tmp_path, shapes_config):
    """Clip with a small ResNet in float64, in training."""
    torch.manual_seed(0)
    return build_method(load_config(shapes_config), tmp_path).double().train()


@pytest.fixture
def batch(method):
    torch.manual_seed(1)
    ids = torch.arange(ROWS)
    tokens = torch.randint(5, 20, (ROWS, 7))
    inputs = {
        "image": {"pixels": torch.randint(0, 256, (ROWS, 32, 32, 3), dtype=torch.uint8)},
        "text": {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
    }
    return Batch(inputs, torch.stack([ids, ids], dim=1), seeds=ids, rows=ids)


def step(method: Method, batch: Batch, **settings):
    config = TrainingConfig(batch_size=ROWS, **settings)
    train_step = TrainStep(method, method, torch.optim.SGD(method.parameters()), config, CPU, "float32", None)
    return train_step([batch], Step(0, 1), 0.1)


def statistics(method):
    return {name: buffer.clone() for name, buffer in method.named_buffers() if "running" in name or "tracked" in name}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_running_statistics_move_once_for_each_micro_batch(method, batch, micro_batch, checkpointing):
    other = copy.deepcopy(method)
    for part in batch.split([ROWS] if micro_batch is None else [4, 4, 4]):
        other.outputs(part)
    if checkpointing:
        checkpoint_activations(method.encoder.embedder("image").tower.net, "here")
    torch.manual_seed(2)
    step(method, batch, micro_batch=micro_batch)
    expected = statistics(other)
    assert any(name.endswith("num_batches_tracked") for name in expected)
    for name, value in statistics(method).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)
        if name.endswith("num_batches_tracked"):
            assert value.item() == (1 if micro_batch is None else 3)


def test_frozen_statistics_stay_and_make_the_parts_of_a_batch_independent(method, batch):
    method.encoder.embedder("text").eval()
    for module in method.modules():
        module.__dict__.update({"drop_prob": 0.0} if "drop_prob" in module.__dict__ else {})
    step(method, batch)  # statistics to keep, other than zero and one
    other = copy.deepcopy(method)
    for each in (method, other):
        prepare_batch_norm(each, TrainingConfig(batch_norm="frozen"), CPU)
        each.encoder.embedder("text").eval()
        assert not learning_layers(each)
        assert each.encoder.embedder("image").tower.training
    before = statistics(method)
    got, full = step(method, batch, micro_batch=5), step(other, batch)
    assert got.loss == pytest.approx(full.loss, abs=1e-10)
    assert got.norm == pytest.approx(full.norm, rel=1e-10)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in statistics(method).items())


def test_single_rows_are_refused_unless_statistics_stay(method, monkeypatch):
    with pytest.raises(MmclError, match=r"training\.micro_batch: 1, but batch normalisation needs several rows"):
        prepare_batch_norm(method, TrainingConfig(micro_batch=1), CPU)
    prepare_batch_norm(method, TrainingConfig(batch_size=2), CPU)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(
        MmclError, match=r"training\.batch_size: 2, a row for each of as many processes, but batch norm"
    ):
        prepare_batch_norm(method, TrainingConfig(batch_size=2), CPU)
    prepare_batch_norm(method, TrainingConfig(batch_size=4), CPU)
    prepare_batch_norm(method, TrainingConfig(micro_batch=1, batch_norm="frozen"), CPU)


def test_shared_statistics_are_refused_without_cuda(method):
    with pytest.raises(MmclError, match="sync works on CUDA only, and this is cpu"):
        prepare_batch_norm(method, TrainingConfig(batch_norm="sync"), CPU)


def test_shared_statistics_replace_the_layers_that_learn_and_keep_the_state(method):
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    count = len(learning_layers(method))
    first = learning_layers(method)[0]
    method.encoder.embedder("image").keep_in_eval([first])
    prepare_batch_norm(method, TrainingConfig(batch_norm="sync"), torch.device("cuda"))
    kinds = [isinstance(layer, nn.SyncBatchNorm) for layer in learning_layers(method)]
    assert kinds == [True] * (count - 1)
    assert not isinstance(first, nn.SyncBatchNorm)
    assert first in set(method.modules())
    assert before.keys() == method.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "world", "warning"),
    [
        ({}, 1, None),
        ({"micro_batch": 64}, 1, None),
        ({"micro_batch": 16}, 1, "about 16 rows of one process"),
        ({"micro_batch": TokenLimit(tokens=100)}, 2, "about 100 tokens of one process"),
        ({}, 2, "the 32 rows of one process"),
        ({"batch_norm": "sync"}, 2, None),
        ({"batch_norm": "sync", "micro_batch": 16}, 2, "about 16 rows of each process"),
    ],
)
def test_one_line_tells_of_statistics_of_less_than_the_batch(method, caplog, monkeypatch, settings, world, warning):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    with caplog.at_level(logging.WARNING, "mmcl"):
        warn_of_statistics(method, TrainingConfig(batch_size=64, **settings))
    assert len(caplog.records) == (warning is not None)
    if warning:
        assert warning in caplog.text
        assert "instead of the 64 rows that are compared" in caplog.text
        for layer in method.modules():
            layer.training = False
        warn_of_statistics(method, TrainingConfig(batch_size=64, **settings))
        assert len(caplog.records) == 1


def test_heads_of_a_ring_tell_that_they_see_the_rows_of_one_process(tmp_path, caplog, monkeypatch, shapes_config):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for norm, exchange, told in (("batch", "ring", True), ("layer", "ring", False), ("batch", "gather", False)):
        projector = {"hidden": [8], "dim": 4, "norm": norm}
        changes = {"method": {"name": "simclr", "projector": projector}, "augmentation": {"flip": 0.5}}
        config = load_config(shapes_config | changes, ["model.text=null", f"training.exchange={exchange}"])
        warn_of_statistics(build_method(config, tmp_path), config.training)
        assert ("the heads' batch normalisation takes the statistics of the 32 rows" in caplog.text) == told
        caplog.clear()


def test_freezing_what_does_not_learn_is_refused(tmp_path, shapes_config):
    shapes_config["model"]["image"] |= {"frozen": True}
    method = build_method(load_config(shapes_config), tmp_path)
    with pytest.raises(MmclError, match=r"training\.batch_norm: no batch normalisation learns here .*; leave it out"):
        prepare_batch_norm(method, TrainingConfig(batch_norm="frozen"), CPU)
    prepare_batch_norm(method, TrainingConfig(), CPU)

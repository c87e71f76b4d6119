"""Training on texts end to end: precision, dropout, and what falls back."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from mmcl.models.activations import checkpoint_activations
from mmcl.models.text.packed_features import trains_packed

from .test_embedder import make_embedder


def batch(embedder):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(4, 20, size=n).astype(np.int32) for n in rng.integers(1, 30, size=40)]
    return embedder.processor.collate(tokens)


def test_under_autocast_weights_are_cast_and_gradients_are_theirs():
    embedder = make_embedder().eval()
    inputs, gradients = batch(embedder), []
    for enabled in (False, True):
        embedder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            embedder(**inputs).float().square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in embedder.named_parameters() if p.grad is not None})
    exact, rough = gradients
    for name, gradient in exact.items():
        assert rough[name].dtype == torch.float32
        if gradient.abs().max() > 1e-4:  # softmax has none of a bias of keys
            assert torch.cosine_similarity(rough[name].flatten(), gradient.flatten(), dim=0) > 0.98, name


def test_dropout_is_drawn_from_torchs_generator_in_training_alone():
    embedder = make_embedder().train()
    inputs = batch(embedder)

    def drawn(seed):
        torch.manual_seed(seed)
        return embedder(**inputs)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    embedder.eval()
    assert torch.equal(drawn(0), drawn(1))


def test_what_is_not_the_plain_network_falls_back():
    tower = make_embedder().tower
    assert trains_packed(tower)
    compiled, heard, hooked, adapted = (copy.deepcopy(tower) for _ in range(4))
    compiled.compile()
    layer = next(part for part in hooked.modules() if isinstance(part, nn.Linear))
    layer.register_forward_hook(lambda *_: None)
    parent = next(part for part in adapted.net.modules() if isinstance(getattr(part, "dense", None), nn.Linear))
    parent.dense = nn.Sequential(parent.dense)
    heard.register_forward_hook(lambda *_: None)
    for other in (compiled, heard, hooked, adapted):
        assert not trains_packed(other)


def test_what_checkpoints_its_activations_falls_back_without_a_hook_that_says_so():
    tower = make_embedder().tower
    checkpoint_activations(tower.net, "model.text.checkpointing")
    for module in tower.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    assert not trains_packed(tower)

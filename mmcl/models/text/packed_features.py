"""What a text tower gives of texts end to end, with its live weights, their gradient and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mmcl.models.text.packed.families import described_with_dropout
from mmcl.models.text.packed.layout import fill, padded_layout
from mmcl.models.text.packed.transformer import LiveWeights, PackedTransformer
from mmcl.models.text.pooling import pool
from mmcl.models.text.tower import OWN_VECTOR, TextTower


def packs(tower: TextTower) -> bool:
    """Whether texts may pass end to end through the network of ``tower``, if that is described: nothing but that stands
    before the pooling, and it reads no padding."""
    plain = type(tower) is TextTower and tower.token_layers is None and tower.pooling != "pooled"
    return plain and tower.padding.masked and not tower.padding.length


def trains_packed(tower: TextTower) -> bool:
    """Whether :func:`packed_features` gives what a call of ``tower`` does, in training as well.

    Not where that is compiled or hooked, computes activations again in the backward pass, or is autocast in float16, in
    which rows of padding overflow when they are normalised.
    """
    hooks = (tower._forward_hooks, tower._forward_pre_hooks, tower._backward_hooks, tower._backward_pre_hooks)
    called = tower._compiled_call_impl is None and not any(hooks)
    float16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16
    if not called or float16 or not packs(tower):
        return False
    checkpoints = any(getattr(part, "gradient_checkpointing", False) for part in tower.net.modules())
    return not checkpoints and described_with_dropout(tower.net) is not None


def packed_features(
    tower: TextTower,
    lengths: Sequence[int],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    skipped: Tensor | None = None,
) -> Tensor:
    """(N, width) features, as :meth:`TextTower.forward` gives them.

    The states are of the type that autocast has chosen, if it is on, and into which weights are cast once.

    Args:
        tower: for which :func:`trains_packed` holds.
        lengths: tokens of each text, the longest first; none below 1.
        input_ids: (N, L), as ``attention_mask``.
        attention_mask: absent without padding.
        skipped: (N,), as there.
    """
    device, dtype = input_ids.device, tower.word_embeddings.weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    tokens = [ids[:length] for ids, length in zip(input_ids.cpu().numpy(), lengths, strict=True)]
    with torch.autocast(device.type, enabled=False):
        network = PackedTransformer(tower.net, LiveWeights(dtype), dtype)
        packed, _ = network(tokens, all_layers=tower.reads_layers)
    layout, longest = padded_layout(lengths, device), max(lengths)
    layers = [fill(states, layout)[0].view(len(lengths), longest, -1) for states in packed]
    if tower.pooling in OWN_VECTOR:
        return cast(Tensor, tower.net.pooler(layers[-1]))
    ids = input_ids[:, :longest]
    mask = None if attention_mask is None else attention_mask[:, :longest]
    weights = None if tower.token_weights is None else tower.token_weights(ids)
    return pool(layers[-1], mask, tower.pooling, skipped=skipped, layers=layers, weights=weights)

"""open_clip's vision transformers for inference in bfloat16: one product a layer for the patches of all images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mmcl.data.patches import square_patches
from mmcl.models.image.tower import ImageTower
from mmcl.runtime.products import PackedLinear

Function = Callable[[Tensor], Tensor]
DTYPE = torch.bfloat16
_LEVELS = 255
_MIDDLE = 128  # subtracted from levels, which bfloat16 then holds as they are


class _Layer(NamedTuple):
    """One block's functions."""

    attention_norm: Function
    query_key_value: Function
    attended: Function
    feed_forward_norm: Function
    up: Function
    down: Function


def runs_packed(tower: ImageTower) -> bool:
    """Whether :class:`PackedVision` computes what ``tower`` does: on a CPU, and by open_clip's own modules alone, with
    blocks as CLIP has them. Adapters and hooks are not known to it."""
    net: Any = tower.net
    if type(net).__name__ != "VisionTransformer" or not type(net).__module__.startswith("open_clip."):
        return False
    if next(net.parameters()).device.type != "cpu" or net.attn_pool is not None or net.pool_type == "none":
        return False
    return all(map(_is_plain, net.transformer.resblocks)) and not any(map(_hooked, tower.modules()))


def _is_plain(block: Any) -> bool:
    if type(block).__name__ != "ResidualAttentionBlock" or hasattr(block, "ln_1_kv"):
        return False
    attention = block.attn
    return (
        type(attention) is nn.MultiheadAttention
        and attention.in_proj_bias is not None
        and type(block.ls_1) is type(block.ls_2) is nn.Identity
        and type(attention.out_proj) is NonDynamicallyQuantizableLinear
        and type(block.mlp.c_fc) is type(block.mlp.c_proj) is nn.Linear
        and all(isinstance(norm, nn.LayerNorm) for norm in (block.ln_1, block.ln_2))
    )


def _hooked(part: nn.Module) -> bool:
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or part._compiled_call_impl is not None


class PackedVision:
    """Features of images as an image tower gives them, with weights in bfloat16 laid out once.

    Of each layer queries, keys and values are one product, without a copy of weights for each image as
    ``nn.MultiheadAttention`` makes it under autocast; activations are part of products, and the normalisation of pixels
    of the first one's weights. Softmax, normalisation and pooling accumulate in float32.

    Args:
        tower: for which :func:`runs_packed` holds.
    """

    def __init__(self, tower: ImageTower) -> None:
        net: Any = tower.net
        self._net, self._patch, self._heads = net, net.patch_size[0], net.transformer.resblocks[0].attn.num_heads
        weight = net.conv1.weight.detach().float()
        mean, std = tower.mean.float().view(1, 3, 1, 1), tower.std.float().view(1, 3, 1, 1)
        bias = (weight * ((_MIDDLE / _LEVELS - mean) / std)).sum((1, 2, 3))
        scaled = (weight / (_LEVELS * std)).permute(0, 2, 3, 1).flatten(1)  # colours last, as pixels have them
        self._patches = PackedLinear(scaled.to(DTYPE), bias.to(DTYPE))
        self._first = net.class_embedding.detach().to(DTYPE)
        self._positions = net.positional_embedding.detach().to(DTYPE)
        self._norm = _norm(net.ln_pre)
        self._layers = [_layer(block) for block in net.transformer.resblocks]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, width) float32 features of squares, uint8 (N, size, size, 3)."""
        count = len(pixels)
        levels = square_patches(pixels, self._patch)[0].flatten(0, 1).to(DTYPE).sub_(_MIDDLE)
        patches = self._patches(levels).view(count, -1, len(self._first))
        states = torch.cat([self._first.expand(count, 1, -1), patches], 1).add_(self._positions)
        length, states = states.shape[1], self._norm(states.flatten(0, 1))
        for layer in self._layers:
            joined = layer.query_key_value(layer.attention_norm(states))
            states = layer.attended(self._attend(joined, count, length)).add_(states)
            states = layer.down(layer.up(layer.feed_forward_norm(states))).add_(states)
        pooled, _ = self._net._pool(states.view(count, length, -1).float())
        features: Tensor = pooled if self._net.proj is None else pooled @ self._net.proj
        return features

    def _attend(self, joined: Tensor, count: int, length: int) -> Tensor:
        """(count · length, W) attended values of queries, keys and values beside each other."""
        heads = joined.view(count, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
        query, key, value = heads.contiguous()
        none = query.new_zeros(())
        scores = torch.baddbmm(none, query, key.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5)
        attended = torch.bmm(scores.softmax(-1), value)
        return attended.view(count, self._heads, length, -1).transpose(1, 2).reshape(count * length, -1)


def _layer(block: Any) -> _Layer:
    attention, mlp = block.attn, block.mlp
    return _Layer(
        attention_norm=_norm(block.ln_1),
        query_key_value=_linear(attention.in_proj_weight, attention.in_proj_bias),
        attended=_linear(attention.out_proj.weight, attention.out_proj.bias),
        feed_forward_norm=_norm(block.ln_2),
        up=_activated(mlp.c_fc, mlp.gelu),
        down=_linear(mlp.c_proj.weight, mlp.c_proj.bias),
    )


def _linear(weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Function:
    return PackedLinear(weight.detach().to(DTYPE), None if bias is None else bias.detach().to(DTYPE), activation)


def _activated(layer: nn.Linear, activation: nn.Module) -> Function:
    if type(activation) is nn.GELU:
        return _linear(layer.weight, layer.bias, "gelu" if activation.approximate == "none" else "gelu_tanh")
    product = _linear(layer.weight, layer.bias)
    return lambda states: activation(product(states))


def _norm(module: Any) -> Function:
    if isinstance(module, nn.Identity):
        return lambda states: states
    weight, bias = module.weight.detach().to(DTYPE), module.bias.detach().to(DTYPE)
    return lambda states: F.layer_norm(states, weight.shape, weight, bias, module.eps)

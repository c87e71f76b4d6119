"""Sums of softplus over the rows of a matrix of logits that is computed in tiles, with gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcl.losses.blockwise import triton_blocks
from mmcl.losses.blockwise.blocks import BlockIterator, no_double_backward
from mmcl.losses.blockwise.elementwise import softplus_
from mmcl.losses.blockwise.plan import BlockPlan
from mmcl.losses.blockwise.task import BlockTask, kernel_logits
from mmcl.losses.logits.candidates import EmbeddingSet, exclusion_mask
from mmcl.runtime.device import widest


def softplus_sum(rows: EmbeddingSet, keys: EmbeddingSet, scale: Tensor, bias: Tensor, plan: BlockPlan) -> Tensor:
    """(N,) sums over the keys, except a row's positive and its duplicates, of log(1 + exp(logit + bias))."""
    return _SoftplusSum.apply(rows.vectors, keys.vectors, scale, bias, BlockTask.of(rows, keys, plan.keys, plan))


class _SoftplusSum(torch.autograd.Function):
    """(N,) sums over the columns."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, task: BlockTask) -> Tensor:
        ctx.task, task = task, task.with_vectors(rows, columns)
        blocks = BlockIterator(task.rows, scale, task.plan)
        sums, slopes = (torch.zeros(len(rows), dtype=widest(rows.device), device=rows.device) for _ in range(2))
        in_kernels = task.in_kernels

        def work(shard: EmbeddingSet, _: list[Tensor]) -> None:
            if in_kernels:
                values, derivatives = triton_blocks.softplus_sum(kernel_logits(blocks, shard, 0.0), bias)
                sums.add_(values)
                slopes.add_(derivatives)
                return
            for r, c, z in blocks.tiles(shard):
                sums[r] += _mask(blocks, r, c, shard, softplus_(z.add_(bias))).sum(dim=1)

        task.plan.map_shards(task.columns, task.layout, work)
        ctx.save_for_backward(rows, columns, scale, bias, slopes, *task.masks)
        return sums

    @staticmethod
    @no_double_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias, slopes, *_ = ctx.saved_tensors
        task = ctx.task.with_vectors(rows, columns)
        in_kernels = task.in_kernels
        blocks = BlockIterator(task.rows, scale, task.plan)
        by_sum = grads[0].to(scale.dtype)[:, None]
        d_bias = (grads[0] * slopes).sum()  # 0 so far, unless the kernels have computed the slopes

        def work(shard: EmbeddingSet, _: list[Tensor]) -> Tensor | None:
            if in_kernels:
                logits = kernel_logits(blocks, shard, 0.0)
                return triton_blocks.softplus_sum_backward(logits, bias, blocks.d_rows(), grads[0])

            def derivative(r: slice, c: slice, z: Tensor) -> Tensor:
                weights = _mask(blocks, r, c, shard, z.add_(bias).sigmoid_()).mul_(by_sum[r])
                d_bias.add_(weights.sum())
                return weights

            return blocks.accumulate_gradients(shard, derivative)

        d_columns = task.plan.map_shards(task.columns, task.layout, work)
        d_rows, d_scale = blocks.gradients()
        return d_rows, d_columns, d_scale, d_bias.to(bias.dtype), None


def _mask(blocks: BlockIterator, r: slice, c: slice, shard: EmbeddingSet, terms: Tensor) -> Tensor:
    """The terms of a tile, 0 for a row's positive and its duplicates."""
    mask = exclusion_mask(blocks.rows.at(r), shard.at(c))
    if mask is not None:
        terms.masked_fill_(mask, 0.0)
    blocks.scale_owned(r, c, shard, terms, 0.0)
    return terms

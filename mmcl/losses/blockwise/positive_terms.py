"""Terms of all positives, of which a row may have any number, in a matrix of logits that is computed in tiles, with
gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcl.losses.blockwise.blocks import BlockIterator, no_double_backward
from mmcl.losses.blockwise.elementwise import softplus_
from mmcl.losses.blockwise.log_sum_exp import Statistics
from mmcl.losses.blockwise.plan import BlockPlan
from mmcl.losses.blockwise.task import BlockTask
from mmcl.losses.logits.candidates import EmbeddingSet, positive_mask
from mmcl.runtime.device import widest


class PositiveTerms(NamedTuple):
    """Of the positives of each row, or column.

    Attributes:
        total: (N,) sum of -log p, in the widest type.
        number: (N,) how many there are.
    """

    total: Tensor
    number: Tensor


def positive_terms(
    rows: EmbeddingSet,
    columns: EmbeddingSet,
    scale: Tensor,
    others: tuple[Statistics, Statistics],
    plan: BlockPlan,
    *,
    both: bool,
    compete: bool,
) -> tuple[PositiveTerms, PositiveTerms]:
    """Sums of -log p over the positives of the rows, and of the columns.

    Tiles without positives are skipped: few large groups cost about as much again as the log-sum-exps, and many small
    ones, whose rows stand together, far less.

    Args:
        rows: of this process.
        columns: of this process, in the layout of the plan's keys.
        scale: number by which similarities are multiplied.
        others: statistics of the rows, and of the columns, whose log-sum-exp is the denominator of a positive.
        plan: how the matrix is computed.
        both: compute those of columns; without it the second result is undefined.
        compete: whether the log-sum-exps include the positives; else p = exp(z) / (exp(z) + exp(lse)).
    """
    task = BlockTask.of(rows, columns, plan.keys, plan, both=both, compete=compete)
    lse = tuple(statistics.lse for statistics in others)
    tables = _PositiveTerms.apply(rows.vectors, columns.vectors, scale, *lse, task)
    by_row, by_column = (PositiveTerms(table[:, 0], table[:, 2].detach()) for table in tables)
    return by_row, by_column


class _PositiveTerms(torch.autograd.Function):
    """(N, 3) of rows and (M, 3) of columns: the sums of -log p, of their derivatives by the log-sum-exp, and of 1."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, row_lse: Tensor, column_lse: Tensor, task: BlockTask
    ) -> tuple[Tensor, Tensor]:
        ctx.task, task = task, task.with_vectors(rows, columns)
        blocks = BlockIterator(task.rows, scale, task.plan)
        by_row = rows.new_zeros(len(rows), 3, dtype=widest(rows.device))

        def work(shard: EmbeddingSet, extras: list[Tensor]) -> Tensor | None:
            by_column = by_row.new_zeros(len(shard.vectors), 3)
            ways = ((by_row, row_lse, 1), (by_column, extras[0], 0))[: 1 + task.both]
            for r, c, z in blocks.tiles(shard, _has_positives(blocks, shard)):
                positive = _positives(blocks, r, c, shard)
                if task.compete:
                    z.mul_(positive)
                for table, lse, dim in ways:
                    at = r if dim == 1 else c
                    number = positive.sum(dim, dtype=table.dtype)
                    if task.compete:
                        total, slope = number * lse[at] - z.sum(dim, dtype=table.dtype), number
                    else:
                        difference = lse[at].unsqueeze(dim).to(z.dtype) - z
                        slope = (difference.sigmoid() * positive).sum(dim, dtype=table.dtype)
                        total = (softplus_(difference) * positive).sum(dim, dtype=table.dtype)
                    table[at] += torch.stack([total, slope, number], dim=1)
            return by_column if task.both else None

        by_column = task.plan.map_shards(task.columns, task.layout, work, extras=[column_lse])
        by_column = by_row.new_zeros(len(columns), 3) if by_column is None else by_column
        ctx.save_for_backward(rows, columns, scale, row_lse, column_lse, by_row, by_column, *task.masks)
        return by_row, by_column

    @staticmethod
    @no_double_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, row_lse, column_lse, by_row, by_column, *_ = ctx.saved_tensors
        task = ctx.task.with_vectors(rows, columns)
        blocks = BlockIterator(task.rows, scale, task.plan)
        of_rows, of_columns = (grad[:, 0].contiguous() for grad in grads)

        def work(shard: EmbeddingSet, extras: list[Tensor]) -> Tensor | None:
            ways = ((row_lse, of_rows, 1), (extras[0], extras[1], 0))[: 1 + task.both]

            def derivative(r: slice, c: slice, z: Tensor) -> Tensor:
                weights = z.new_zeros(())
                for lse, upstream, dim in ways:
                    of, by_total = (x[r if dim == 1 else c].unsqueeze(dim).to(z.dtype) for x in (lse, upstream))
                    weights = weights - (by_total if task.compete else (of - z).sigmoid_() * by_total)
                return weights * _positives(blocks, r, c, shard)

            return blocks.accumulate_gradients(
                shard,
                derivative,
                columns_require_grad=task.layout.requires_grad,
                wanted=_has_positives(blocks, shard),
            )

        d_columns = task.plan.map_shards(task.columns, task.layout, work, extras=[column_lse, of_columns])
        d_rows, d_scale = blocks.gradients()
        return d_rows, d_columns, d_scale, of_rows * by_row[:, 1], of_columns * by_column[:, 1], None


def _positives(blocks: BlockIterator, r: slice, c: slice, shard: EmbeddingSet) -> Tensor:
    return positive_mask(blocks.rows.at(r), shard.at(c), blocks.plan.exchange.row_offset + r.start)


def _has_positives(blocks: BlockIterator, shard: EmbeddingSet) -> Callable[[slice, slice], bool]:
    return lambda r, c: bool(_positives(blocks, r, c, shard).any())

"""Log-sum-exp of the rows, and of the columns, of a matrix of logits that is computed in tiles, with gradient.

Statistics are of all columns except a row's own positive. Sums over tiles are accumulated in the widest type of the
device, float64 where it has that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcl.losses.blockwise import sigmoid_blocks, triton_blocks
from mmcl.losses.blockwise.blocks import BlockIterator, no_double_backward, softmax_factors
from mmcl.losses.blockwise.elementwise import exp_
from mmcl.losses.blockwise.plan import BlockPlan, ColumnLayout
from mmcl.losses.blockwise.task import BlockTask, kernel_logits
from mmcl.losses.logits.candidates import EmbeddingSet, exclusion_mask
from mmcl.losses.logits.similarity import similarities
from mmcl.runtime.device import widest

EMPTY = -1e30  # the log-sum-exp of nothing; finite, since the gradient of -∞ would be ∞ - ∞


class Statistics(NamedTuple):
    """Of the logits in each row, or column, except the positive: in the widest type, and finite.

    Attributes:
        lse: (N,) log-sum-exp.
        total: (N,) sum, if asked for.
        number: (N,) count, if asked for.
    """

    lse: Tensor
    total: Tensor
    number: Tensor


def positive_logits(queries: EmbeddingSet, keys: EmbeddingSet, scale: Tensor, plan: BlockPlan) -> Tensor:
    """(N,) logits of the rows' positives."""
    a, b = queries.vectors, keys.vectors
    if plan.similarity == "euclidean":
        return similarities(a[:, None], b[:, None], "euclidean").flatten() * scale
    return (a * b).sum(dim=1) * scale


def log_sum_exp(
    rows: EmbeddingSet,
    columns: EmbeddingSet,
    layout: ColumnLayout,
    scale: Tensor,
    positives: Tensor | None,
    plan: BlockPlan,
    *,
    both: bool = False,
    totals: bool = False,
    weight: float = 0.0,
) -> tuple[Statistics, Statistics]:
    """Statistics of the logits in the rows, and in the columns.

    Args:
        rows: of this process.
        columns: of this process; with an exchange, those of all processes count.
        layout: of the columns.
        scale: number by which similarities are multiplied.
        positives: (N,) logits of the rows' positives; they bound the range of logits that matter. None if unknown.
        plan: how the matrix is computed.
        both: compute those of columns; without it the second result is undefined.
        totals: compute sums and counts, too.
        weight: how much a column counts in its owner's row; 0 leaves it out, as positives are.
    """
    task = BlockTask.of(rows, columns, layout, plan, both=both, totals=totals, weight=weight)
    if not totals and columns.guide is None:  # rows and columns exclude the same elements
        largest, least = _bounds(rows, columns, scale, positives, plan)
        known = None if positives is None else least
        shift = sigmoid_blocks.sigmoid_shift(largest, known, rows.vectors, plan)
        if shift is not None:
            in_sigmoids = task._replace(shift=shift, in_sigmoids=True)
            tables = _LogSumExp.apply(rows.vectors, columns.vectors, scale, in_sigmoids)
            if not sigmoid_blocks.too_large(tables[0][:, 0].detach(), largest, in_sigmoids):
                return _unpack(tables)
        task = task._replace(shift=_common_shift(largest, least, weight, rows.vectors.dtype))
    return _unpack(_LogSumExp.apply(rows.vectors, columns.vectors, scale, task))


def _unpack(tables: tuple[Tensor, Tensor]) -> tuple[Statistics, Statistics]:
    by_row, by_column = (Statistics(*table.unbind(dim=1)) for table in tables)
    return by_row, by_column


@torch.no_grad()
def _bounds(
    rows: EmbeddingSet, columns: EmbeddingSet, scale: Tensor, positives: Tensor | None, plan: BlockPlan
) -> tuple[float, float]:
    """The largest that a logit can be (Cauchy and Schwarz), and the negative of the smallest positive; where positives
    are unknown, of the smallest that a logit can be."""
    zero = rows.vectors.new_zeros(())
    row_norm, column_norm = (part.vectors.norm(dim=1).max() if len(part.vectors) else zero for part in (rows, columns))
    lowest = zero.new_full((), -torch.inf) if positives is None or not len(positives) else -positives.min()
    norms = torch.stack([row_norm, lowest, column_norm])
    row_norm, least, column_norm = plan.exchange.all_reduce_max(norms).tolist()
    euclidean = plan.similarity == "euclidean"
    largest = 0.0 if euclidean else scale.item() * row_norm * column_norm
    if positives is None:
        least = scale.item() * (row_norm + column_norm) if euclidean else largest
    return largest, least


def _common_shift(largest: float, least: float, weight: float, dtype: torch.dtype) -> float | None:
    """A number c for which one exp(z - c) serves rows and columns, without their maxima; or None.

    A logit far below the positive of its row does not change the loss. If the bound of all logits and the smallest
    positive are close enough, c lies between them: no sum overflows, and no term that matters underflows. For unit
    vectors in float32 this holds down to τ = 0.01 unless some positive has a cosine below -0.2; where positives are
    unknown, down to τ = 0.017.
    """
    log_weight = math.log(weight) if weight > 1 else 0.0
    bound = largest + log_weight
    limit = math.log(torch.finfo(dtype).max) - 28  # for sums of 10⁶ terms above, for terms of 10⁻¹² below
    if log_weight > limit:
        return None
    if max(bound, least) <= limit:
        return 0.0
    return (bound - least) / 2 if (bound + least) / 2 <= limit else None


class _LogSumExp(torch.autograd.Function):
    """(N, 3) :class:`Statistics` of rows and (M, 3) of columns."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, task: BlockTask) -> tuple[Tensor, Tensor]:
        ctx.task, task = task, task.with_vectors(rows, columns)
        blocks = BlockIterator(task.rows, scale, task.plan)
        if task.in_kernels:
            reduce_shard = _reduce_in_kernels
        elif task.in_sigmoids:
            reduce_shard = _reduce_in_sigmoids
        else:
            reduce_shard = _reduce_with_maxima if task.shift is None else _reduce_shifted
        by_row = _empty(rows)

        def work(shard: EmbeddingSet, _: list[Tensor]) -> Tensor | None:
            of_rows, of_columns = reduce_shard(blocks, shard, task)
            by_row.copy_(_merge(by_row, of_rows))
            return of_columns if task.both else None

        by_column = task.plan.map_shards(task.columns, task.layout, work, _merge)
        by_column = _empty(columns) if by_column is None else by_column
        for table in (by_row, by_column):
            table[:, 0].clamp_(min=EMPTY)
        ctx.save_for_backward(rows, columns, scale, by_row, by_column, *task.masks)
        return by_row, by_column

    @staticmethod
    @no_double_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, by_row, by_column, *_ = ctx.saved_tensors
        task = ctx.task.with_vectors(rows, columns)
        blocks = BlockIterator(task.rows, scale, task.plan)
        in_kernels, columns_require_grad = task.in_kernels, task.layout.requires_grad
        of_rows = _Upstream.of(by_row, grads[0])
        make_derivative = _derivative_with_maxima if task.shift is None else _derivative_shifted

        def work(shard: EmbeddingSet, extras: list[Tensor]) -> Tensor | None:
            if in_kernels:
                logits, statistics = kernel_logits(blocks, shard, task.weight), (*of_rows[:2], *extras[:2])
                return triton_blocks.log_sum_exp_backward(
                    logits, blocks.d_rows(), *statistics, shift=task.shift, columns_require_grad=columns_require_grad
                )
            if task.in_sigmoids:
                of_columns = (extras[0], extras[1]) if extras else None
                return sigmoid_blocks.log_sum_exp_backward(blocks, shard, task, of_rows[:2], of_columns)
            derivative = make_derivative(blocks, shard, task, of_rows, _Upstream(*extras) if extras else None)
            return blocks.accumulate_gradients(shard, derivative, columns_require_grad=columns_require_grad)

        extras = _Upstream.of(by_column, grads[1]) if task.both else ()
        d_columns = task.plan.map_shards(task.columns, task.layout, work, extras=extras)
        d_rows, d_scale = blocks.gradients()
        return d_rows, d_columns, d_scale, None


class _Upstream(NamedTuple):
    """The log-sum-exps of rows, or of columns, and the upstream gradients of them and of the sums; (N,) each."""

    lse: Tensor
    by_lse: Tensor
    by_total: Tensor

    @classmethod
    def of(cls, statistics: Tensor, grads: Tensor) -> _Upstream:
        return cls(statistics[:, 0].contiguous(), grads[:, 0].contiguous(), grads[:, 1].contiguous())


Derivative = Callable[[slice, slice, Tensor], Tensor]
"""Replaces a tile of logits, at these rows and columns, by the derivative by them."""


def _empty(vectors: Tensor) -> Tensor:
    """The (N, 3) statistics of no logits."""
    table = torch.zeros(len(vectors), 3, dtype=widest(vectors.device), device=vectors.device)
    table[:, 0] = -torch.inf
    return table


def _merge(a: Tensor, b: Tensor) -> Tensor:
    """(N, 3) statistics of the union of two disjoint parts of the matrix."""
    return torch.cat([torch.logaddexp(a[:, :1], b[:, :1]), a[:, 1:] + b[:, 1:]], dim=1)


def _reduce_in_kernels(blocks: BlockIterator, shard: EmbeddingSet, task: BlockTask) -> tuple[Tensor, Tensor]:
    """Statistics of a shard by the Triton kernels."""
    by_row, by_column = _empty(task.rows.vectors), _empty(shard.vectors)
    logits = kernel_logits(blocks, shard, task.weight)
    in_row, in_column = triton_blocks.log_sum_exp(logits, shift=task.shift, both=task.both)
    by_row[:, 0] = in_row
    if in_column is not None:
        by_column[:, 0] = in_column
    return by_row, by_column


def _reduce_in_sigmoids(blocks: BlockIterator, shard: EmbeddingSet, task: BlockTask) -> tuple[Tensor, Tensor]:
    """Statistics of a shard by products that end in exponentials."""
    by_row, by_column = _empty(task.rows.vectors), _empty(shard.vectors)
    by_row[:, 0], by_column[:, 0] = sigmoid_blocks.log_sum_exp(blocks, shard, task)
    return by_row, by_column


def _exponentials(blocks: BlockIterator, r: slice, c: slice, shard: EmbeddingSet, z: Tensor, task: BlockTask) -> Tensor:
    """exp(z - shift) in the memory of z; 0 for what is no candidate."""
    terms = exp_(z.sub_(task.shift) if task.shift else z)
    mask = exclusion_mask(task.rows.at(r), shard.at(c))
    if mask is not None:
        terms.masked_fill_(mask, 0.0)
    blocks.scale_owned(r, c, shard, terms, task.weight)
    return terms


def _reduce_shifted(blocks: BlockIterator, shard: EmbeddingSet, task: BlockTask) -> tuple[Tensor, Tensor]:
    """Statistics of a shard, with one exponential for rows and columns."""
    assert task.shift is not None
    by_row, by_column = _empty(task.rows.vectors), _empty(shard.vectors)
    in_row, in_column = by_row[:, 0].zero_(), by_column[:, 0].zero_()
    for r, c, z in blocks.tiles(shard):
        terms = _exponentials(blocks, r, c, shard, z, task)
        in_row[r] += terms.sum(dim=1)
        if task.both:
            in_column[c] += terms.sum(dim=0)
    for sums in (in_row, in_column):
        sums.log_().add_(task.shift)
    return by_row, by_column


def _derivative_shifted(
    blocks: BlockIterator, shard: EmbeddingSet, task: BlockTask, of_rows: _Upstream, of_columns: _Upstream | None
) -> Derivative:
    assert task.shift is not None
    dtype = shard.vectors.dtype
    row_factors = softmax_factors(of_rows.lse, of_rows.by_lse, task.shift).to(dtype)[:, None]
    column_factors = None
    if of_columns is not None:
        column_factors = softmax_factors(of_columns.lse, of_columns.by_lse, task.shift).to(dtype)[None, :]

    def derivative(r: slice, c: slice, z: Tensor) -> Tensor:
        terms = _exponentials(blocks, r, c, shard, z, task)
        if column_factors is None:
            return terms.mul_(row_factors[r])
        factors = blocks.workspace("factors", *terms.shape)
        return terms.mul_(torch.add(row_factors[r], column_factors[:, c], out=factors))

    return derivative


def _masked(blocks: BlockIterator, r: slice, c: slice, shard: EmbeddingSet, z: Tensor, task: BlockTask) -> list[Tensor]:
    """The logits from rows to columns and, if asked for, from columns to rows; -∞ for what is no candidate."""
    found = blocks.owned(r, c, shard)
    if found is not None:
        present, row, column = found
        values = z[row, column]
        log_weight = math.log(task.weight) if task.weight else -torch.inf
        z[row, column] = torch.where(present, values + log_weight, values)
    rows, columns = task.rows.at(r), shard.at(c)
    mask = exclusion_mask(rows, columns)
    logits = [z if mask is None else z.masked_fill(mask, -torch.inf)]
    if task.both:
        mask = exclusion_mask(columns, rows)
        logits.append(z if mask is None else z.masked_fill(mask.T, -torch.inf))
    return logits


def _reduce_with_maxima(blocks: BlockIterator, shard: EmbeddingSet, task: BlockTask) -> tuple[Tensor, Tensor]:
    """Statistics of a shard whose logits may have any size, and differ between the directions."""
    by_row, by_column = _empty(task.rows.vectors), _empty(shard.vectors)
    for r, c, z in blocks.tiles(shard):
        tables = ((by_row[r], 1), (by_column[c], 0))
        for (table, dim), logits in zip(tables, _masked(blocks, r, c, shard, z, task), strict=False):
            absent = logits.isneginf()
            found = logits.logsumexp(dim), logits.masked_fill(absent, 0.0).sum(dim), (~absent).sum(dim)
            table.copy_(_merge(table, torch.stack([x.to(table.dtype) for x in found], dim=1)))
    return by_row, by_column


def _derivative_with_maxima(
    blocks: BlockIterator, shard: EmbeddingSet, task: BlockTask, of_rows: _Upstream, of_columns: _Upstream | None
) -> Derivative:
    def derivative(r: slice, c: slice, z: Tensor) -> Tensor:
        weights = torch.zeros_like(z)
        directions = ((of_rows, r, 1), (of_columns, c, 0))
        for (upstream, at, dim), logits in zip(directions, _masked(blocks, r, c, shard, z, task), strict=False):
            assert upstream is not None
            lse, by_lse, by_total = (x[at].unsqueeze(dim).to(z.dtype) for x in upstream)
            weights += ((logits - lse).exp_() * by_lse + by_total).masked_fill_(logits.isneginf(), 0.0)
        return weights

    return derivative

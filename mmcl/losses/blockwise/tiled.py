"""What the losses ask of a matrix of logits that is gone through in tiles, with gradient.

Everything is about *other* columns than a row's own partner, and sums over tiles are kept in the widest type of the
device, which is float64 where it has that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.blockwise import triton_tiles
from mmcl.losses.blockwise.tiles import Held, Plan, Sweep, by_hand, factors
from mmcl.losses.candidates import EmbeddingSet, exclusion_mask
from mmcl.losses.similarity import similarities
from mmcl.runtime.device import widest

NOTHING = -1e30  # the log-sum-exp of nothing; finite, for a gradient through it must not become ∞ - ∞


class Statistics(NamedTuple):
    """What a row, or a column, has besides its partner: of the widest type, and finite.

    Attributes:
        lse: (N,) log-sum-exp of the logits.
        total: (N,) their sum, if asked for.
        number: (N,) how many there are, if asked for.
    """

    lse: Tensor
    total: Tensor
    number: Tensor


def positive_logits(queries: EmbeddingSet, keys: EmbeddingSet, scale: Tensor, plan: Plan) -> Tensor:
    """(N,) logits of the rows' positives."""
    a, b = queries.vectors, keys.vectors
    if plan.similarity == "euclidean":
        return similarities(a[:, None], b[:, None], "euclidean").flatten() * scale
    return (a * b).sum(dim=1) * scale


def log_sum_exp(
    rows: EmbeddingSet,
    columns: EmbeddingSet,
    held: Held,
    scale: Tensor,
    own: Tensor,
    plan: Plan,
    *,
    both: bool = False,
    totals: bool = False,
    own_weight: float | None = None,
) -> tuple[Statistics, Statistics]:
    """Statistics of the logits in the rows, and in the columns.

    Args:
        rows: of this process.
        columns: of this process; those of others count too, if the plan has an exchange.
        held: the columns of all processes, as the plan knows them.
        scale: number by which similarities are multiplied.
        own: (N,) logits of the rows' partners, from which it is told how far logits lie apart.
        plan: how to go about it.
        both: of the columns, too; what stands there without it is of no use.
        totals: sums and counts, too.
        own_weight: how much a column counts in the row that it belongs to; absent, it is left out, as partners are.
    """
    weight = 0.0 if own_weight is None else own_weight
    shared = not totals and columns.guide is None  # rows and columns leave out the same tiles' entries
    shift = _shift(rows, columns, scale, own, weight, plan) if shared else None
    job = _Job.of(rows, columns, held, plan, both=both, totals=totals, weight=weight, shift=shift)
    tables = _LogSumExp.apply(rows.vectors, columns.vectors, scale, job)
    by_row, by_column = (Statistics(*table.unbind(dim=1)) for table in tables)
    return by_row, by_column


def softplus_sum(rows: EmbeddingSet, keys: EmbeddingSet, scale: Tensor, bias: Tensor, plan: Plan) -> Tensor:
    """(N,) sums over the keys of log(1 + exp(logit + bias))."""
    return _SoftplusSum.apply(rows.vectors, keys.vectors, scale, bias, _Job.of(rows, keys, plan.keys, plan))


class _Job(NamedTuple):
    """What is to be done, besides the tensors that gradient flows to: autograd keeps these, and so finds out if they
    are changed before the backward pass.

    ``shift`` is what to subtract from all logits before an exponential that serves rows and columns, if there is one.
    """

    rows: EmbeddingSet
    columns: EmbeddingSet
    held: Held
    plan: Plan
    both: bool = False
    totals: bool = False
    weight: float = 0.0
    shift: float | None = None

    @classmethod
    def of(cls, rows: EmbeddingSet, columns: EmbeddingSet, held: Held, plan: Plan, **options: Any) -> _Job:
        """Without the vectors, which ``on`` puts in their place."""
        return cls(rows, columns, held, plan, **options).on(*(side.vectors.new_empty(0) for side in (rows, columns)))

    @property
    def rules(self) -> list[Tensor]:
        """What tells the candidates, for autograd to keep as well."""
        return [tensor for side in (self.rows, self.columns) for tensor in side[1:] if tensor is not None]

    def on(self, rows: Tensor, columns: Tensor) -> _Job:
        return self._replace(rows=self.rows._replace(vectors=rows), columns=self.columns._replace(vectors=columns))


@torch.no_grad()
def _shift(
    rows: EmbeddingSet, columns: EmbeddingSet, scale: Tensor, own: Tensor, weight: float, plan: Plan
) -> float | None:
    """A number c for which one exp(z - c) serves rows and columns alike, with no maxima to be found; or None.

    No logit is above a bound (Cauchy and Schwarz), and none that is far below its row's partner changes the loss. If
    the bound and the smallest partner's logit are near enough to each other, c lies between them, and neither does a
    sum overflow nor does a term vanish that would count. With unit vectors this holds, in float32, down to τ = 0.01
    unless some row's partner has a cosine below -0.2.
    """
    if len(own):
        norms = rows.vectors.norm(dim=1).max(), -own.min()
    else:
        norms = own.new_zeros(()), own.new_full((), -torch.inf)
    longest = columns.vectors.norm(dim=1).max() if len(columns.vectors) else own.new_zeros(())
    ours, least, theirs = plan.exchange.largest(torch.stack([*norms, longest])).tolist()
    bound = 0.0 if plan.similarity == "euclidean" else scale.item() * ours * theirs
    more = math.log(weight) if weight > 1 else 0.0
    bound += more
    reach = math.log(torch.finfo(own.dtype).max) - 28  # room for sums of 10⁶ terms above, for terms of 10⁻¹² below
    if more > reach:
        return None
    if max(bound, least) <= reach:
        return 0.0
    return (bound - least) / 2 if (bound + least) / 2 <= reach else None


class _LogSumExp(torch.autograd.Function):
    """(N, 3) :class:`Statistics` of rows and (M, 3) of columns."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, job: _Job) -> tuple[Tensor, Tensor]:
        ctx.job, job = job, job.on(rows, columns)
        sweep = Sweep(job.rows, scale, job.plan)
        kernels = _for_kernels(job) and not job.totals
        by_row = _nothing(rows)

        def work(shard: EmbeddingSet, _: list[Tensor]) -> Tensor | None:
            if kernels:
                found_by_row, found_by_column = _summed_by_kernels(sweep, shard, job)
            else:
                found_by_row, found_by_column = (_summed if job.shift is not None else _collected)(sweep, shard, job)
            by_row.copy_(_join(by_row, found_by_row))
            return found_by_column if job.both else None

        by_column = job.plan.tour(job.columns, job.held, work, _join)
        by_column = _nothing(columns) if by_column is None else by_column
        for table in (by_row, by_column):
            table[:, 0].clamp_(min=NOTHING)
        ctx.save_for_backward(rows, columns, scale, by_row, by_column, *job.rules)
        return by_row, by_column

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, by_row, by_column, *_ = ctx.saved_tensors
        job = ctx.job.on(rows, columns)
        sweep = Sweep(job.rows, scale, job.plan)
        kernels = _for_kernels(job) and not job.totals
        wanted = _Wanted.of(by_row, grads[0])
        derivatives = _derivative_of_sums if job.shift is not None else _derivative_of_statistics

        def work(shard: EmbeddingSet, besides: list[Tensor]) -> Tensor | None:
            if kernels:
                logits, statistics = _for_triton(sweep, shard, job.weight), (*wanted[:2], *besides[:2])
                return triton_tiles.log_sum_exp_backward(
                    logits, sweep.d_rows(), *statistics, shift=job.shift, theirs=job.held.learn
                )
            derivative = derivatives(sweep, shard, job, wanted, _Wanted(*besides) if besides else None)
            return sweep.gradient(shard, derivative, theirs=job.held.learn)

        besides = _Wanted.of(by_column, grads[1]) if job.both else ()
        d_columns = job.plan.tour(job.columns, job.held, work, besides=besides)
        d_rows, d_scale = sweep.finish()
        return d_rows, d_columns, d_scale, None


def _for_kernels(job: _Job) -> bool:
    """Whether the kernels of Triton know all rules that tell the candidates here."""
    guided = job.rows.guide is not None and job.columns.guide is not None
    return not guided and job.plan.similarity != "euclidean" and triton_tiles.available(job.rows.vectors)


def _for_triton(sweep: Sweep, shard: EmbeddingSet, weight: float) -> triton_tiles.Logits:
    rows, plan = sweep.rows, sweep.plan
    dtype = torch.bfloat16 if plan.half else rows.vectors.dtype
    owner = None if shard.owner is None else shard.owner - plan.exchange.first
    vectors = rows.vectors.to(dtype), shard.vectors.to(dtype)
    return triton_tiles.Logits(*vectors, sweep.scale, rows.ids, shard.ids, owner, weight)


def _summed_by_kernels(sweep: Sweep, shard: EmbeddingSet, job: _Job) -> tuple[Tensor, Tensor]:
    by_row, by_column = _nothing(job.rows.vectors), _nothing(shard.vectors)
    in_row, in_column = triton_tiles.log_sum_exp(_for_triton(sweep, shard, job.weight), shift=job.shift, both=job.both)
    by_row[:, 0] = in_row
    if in_column is not None:
        by_column[:, 0] = in_column
    return by_row, by_column


class _Wanted(NamedTuple):
    """What the derivative by the logits of a row, or a column, is made of: its log-sum-exp, and the derivatives by that
    and by the sum of its logits; (N,) each."""

    lse: Tensor
    by_lse: Tensor
    by_total: Tensor

    @classmethod
    def of(cls, statistics: Tensor, grads: Tensor) -> _Wanted:
        return cls(statistics[:, 0].contiguous(), grads[:, 0].contiguous(), grads[:, 1].contiguous())


def _nothing(vectors: Tensor) -> Tensor:
    table = torch.zeros(len(vectors), 3, dtype=widest(vectors.device), device=vectors.device)
    table[:, 0] = -torch.inf
    return table


def _join(a: Tensor, b: Tensor) -> Tensor:
    """(N, 3) statistics of what two processes, or two tiles, have found."""
    return torch.cat([torch.logaddexp(a[:, :1], b[:, :1]), a[:, 1:] + b[:, 1:]], dim=1)


def _exponentials(sweep: Sweep, r: slice, c: slice, shard: EmbeddingSet, z: Tensor, job: _Job) -> Tensor:
    """exp(z - shift) in the place of z, and 0 for what is no candidate."""
    terms = (z.sub_(job.shift) if job.shift else z).exp_()
    mask = exclusion_mask(job.rows.at(r), shard.at(c))
    if mask is not None:
        terms.masked_fill_(mask, 0.0)
    sweep.weigh_own(r, c, shard, terms, job.weight)
    return terms


def _summed(sweep: Sweep, shard: EmbeddingSet, job: _Job) -> tuple[Tensor, Tensor]:
    """Statistics where rows and columns share their exponentials."""
    assert job.shift is not None
    by_row, by_column = _nothing(job.rows.vectors), _nothing(shard.vectors)
    in_row, in_column = by_row[:, 0].zero_(), by_column[:, 0].zero_()
    for r, c, z in sweep.tiles(shard):
        terms = _exponentials(sweep, r, c, shard, z, job)
        in_row[r] += terms.sum(dim=1)
        if job.both:
            in_column[c] += terms.sum(dim=0)
    for sums in (in_row, in_column):
        sums.log_().add_(job.shift)
    return by_row, by_column


def _derivative_of_sums(
    sweep: Sweep, shard: EmbeddingSet, job: _Job, of_rows: _Wanted, of_columns: _Wanted | None
) -> Callable[[slice, slice, Tensor], Tensor]:
    assert job.shift is not None
    dtype = shard.vectors.dtype
    down = factors(of_rows.lse, of_rows.by_lse, job.shift).to(dtype)[:, None]
    along = None if of_columns is None else factors(of_columns.lse, of_columns.by_lse, job.shift).to(dtype)[None, :]

    def derivative(r: slice, c: slice, z: Tensor) -> Tensor:
        terms = _exponentials(sweep, r, c, shard, z, job)
        if along is None:
            return terms.mul_(down[r])
        return terms.mul_(torch.add(down[r], along[:, c], out=sweep.room("weights", *terms.shape)))

    return derivative


def _masked(sweep: Sweep, r: slice, c: slice, shard: EmbeddingSet, z: Tensor, job: _Job) -> list[Tensor]:
    """The logits as rows have them and, if asked for, as columns have them; -∞ is no candidate."""
    found = sweep.own(r, c, shard)
    if found is not None:
        here, row, column = found
        values = z[row, column]
        z[row, column] = torch.where(here, values + (math.log(job.weight) if job.weight else -torch.inf), values)
    rows, columns = job.rows.at(r), shard.at(c)
    out = exclusion_mask(rows, columns)
    logits = [z if out is None else z.masked_fill(out, -torch.inf)]
    if job.both:
        out = exclusion_mask(columns, rows)
        logits.append(z if out is None else z.masked_fill(out.T, -torch.inf))
    return logits


def _collected(sweep: Sweep, shard: EmbeddingSet, job: _Job) -> tuple[Tensor, Tensor]:
    """Statistics where a logit may be one thing to its row and another to its column, and of any size."""
    by_row, by_column = _nothing(job.rows.vectors), _nothing(shard.vectors)
    for r, c, z in sweep.tiles(shard):
        places = ((by_row[r], 1), (by_column[c], 0))
        for (table, dim), logits in zip(places, _masked(sweep, r, c, shard, z, job), strict=False):
            absent = logits.isneginf()
            found = logits.logsumexp(dim), logits.masked_fill(absent, 0.0).sum(dim), (~absent).sum(dim)
            table.copy_(_join(table, torch.stack([x.to(table.dtype) for x in found], dim=1)))
    return by_row, by_column


def _derivative_of_statistics(
    sweep: Sweep, shard: EmbeddingSet, job: _Job, of_rows: _Wanted, of_columns: _Wanted | None
) -> Callable[[slice, slice, Tensor], Tensor]:
    def derivative(r: slice, c: slice, z: Tensor) -> Tensor:
        weights = torch.zeros_like(z)
        for (wanted, where, dim), logits in zip(
            ((of_rows, r, 1), (of_columns, c, 0)), _masked(sweep, r, c, shard, z, job), strict=False
        ):
            assert wanted is not None
            lse, by_lse, by_total = (x[where].unsqueeze(dim).to(z.dtype) for x in wanted)
            weights += ((logits - lse).exp_() * by_lse + by_total).masked_fill_(logits.isneginf(), 0.0)
        return weights

    return derivative


class _SoftplusSum(torch.autograd.Function):
    """(N,) sums over the columns."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, job: _Job) -> Tensor:
        ctx.job, job = job, job.on(rows, columns)
        sweep = Sweep(job.rows, scale, job.plan)
        sums, slopes = (torch.zeros(len(rows), dtype=widest(rows.device), device=rows.device) for _ in range(2))
        kernels = _for_kernels(job)

        def work(shard: EmbeddingSet, _: list[Tensor]) -> None:
            if kernels:
                found = triton_tiles.softplus_sum(_for_triton(sweep, shard, 0.0), bias)
                sums.add_(found[0])
                slopes.add_(found[1])
                return
            for r, c, z in sweep.tiles(shard):
                # The threshold above which it returns its argument is too low for float64 by default.
                terms = _others(sweep, r, c, shard, F.softplus(z.add_(bias), threshold=40.0))
                sums[r] += terms.sum(dim=1)

        job.plan.tour(job.columns, job.held, work)
        ctx.save_for_backward(rows, columns, scale, bias, slopes, *job.rules)
        return sums

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias, slopes, *_ = ctx.saved_tensors
        job = ctx.job.on(rows, columns)
        kernels = _for_kernels(job)
        sweep = Sweep(job.rows, scale, job.plan)
        by_sum = grads[0].to(scale.dtype)[:, None]
        d_bias = (grads[0] * slopes).sum()  # 0 so far, unless kernels have found the slopes

        def work(shard: EmbeddingSet, _: list[Tensor]) -> Tensor | None:
            if kernels:
                logits = _for_triton(sweep, shard, 0.0)
                return triton_tiles.softplus_sum_backward(logits, bias, sweep.d_rows(), grads[0])

            def derivative(r: slice, c: slice, z: Tensor) -> Tensor:
                weights = _others(sweep, r, c, shard, z.add_(bias).sigmoid_()).mul_(by_sum[r])
                d_bias.add_(weights.sum())
                return weights

            return sweep.gradient(shard, derivative)

        d_columns = job.plan.tour(job.columns, job.held, work)
        d_rows, d_scale = sweep.finish()
        return d_rows, d_columns, d_scale, d_bias.to(bias.dtype), None


def _others(sweep: Sweep, r: slice, c: slice, shard: EmbeddingSet, terms: Tensor) -> Tensor:
    """The terms, with 0 for a row's own partner and whatever else is the same thing."""
    mask = exclusion_mask(sweep.rows.at(r), shard.at(c))
    if mask is not None:
        terms.masked_fill_(mask, 0.0)
    sweep.weigh_own(r, c, shard, terms, 0.0)
    return terms

"""Exponentials of logits in bfloat16 as the last step of oneDNN's products, on CPUs with AMX.

Torch has no product of bfloat16 matrices with a float32 result on CPUs, and a logit of 14 rounded to 8 bits is off by
up to 0.03. But a product may end in a sigmoid, which is computed in float32 before the result is rounded; and far below
0 that is the exponential: σ(x) = eˣ / (1 + eˣ). What is rounded, by 2⁻⁹ at most, is then a term of the sum.

Nanoseconds a logit of 512 dimensions on a core of an Intel Xeon with AMX, where a product takes 1.0: a tile of float32
logits 2.0 and its exponential 0.5; of sigmoids 1.5, whose factors take 0.4 in place of 0.8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmcl.losses.blockwise.blocks import BlockIterator, slices, softmax_factors
from mmcl.losses.blockwise.plan import BlockPlan
from mmcl.losses.blockwise.task import BlockTask
from mmcl.losses.logits.candidates import EmbeddingSet, exclusion_mask
from mmcl.runtime.device import has_amx
from mmcl.runtime.products import multiply, sigmoid_of_product, times_outer_sum

_ROWS = 512  # of a tile: with 1024 columns it takes 1 MB in bfloat16, and stays in the second cache of a core
_TOGETHER = 4  # tiles whose products are added up in bfloat16, in the products themselves, before float32 takes the sum
_GROUPS = 8  # parts of a tile whose sums are rounded to bfloat16 each by itself
_NARROWEST = 64  # dimensions: of fewer, a product takes no longer than its exponential, and rounding shows more
_BELOW = 8  # where a logit less the shift is below -8, its sigmoid is less than its exponential by 0.03% at most
_RANGE = 87 - 14  # e⁻⁸⁷ is about the smallest normal number; terms down to e⁻¹⁴, a millionth, of a positive's count
_SHIFT = 68  # at most, for logits around 0: the CPU computes many times slower with subnormal numbers


def sigmoid_shift(largest: float, least: float | None, vectors: Tensor, plan: BlockPlan) -> float | None:
    """What to subtract from all logits, so that their sigmoids are their exponentials; None where there is no such
    number, or where tiles are not computed by sigmoids.

    Where the largest possible logit and the smallest positive lie too far apart, as at τ = 0.01, the shift is chosen
    for the positives. Then logits may turn out too large for it (:func:`too_large`), which is rare as long as it
    serves half of the largest possible: few pairs of unit vectors that are no positives have a cosine above 0.5.

    Args:
        largest: no logit is above.
        least: no positive is below minus this; None if positives are unknown.
        vectors: (N, D) of the rows.
        plan: how the matrix is computed.
    """
    known = plan.precision == "bfloat16" and plan.similarity != "euclidean" and vectors.shape[1] >= _NARROWEST
    if not known or vectors.device.type != "cpu" or not _fast():
        return None
    needed = math.ceil(largest) + _BELOW
    possible = math.floor(_RANGE - (largest if least is None else least))
    shift = min(needed, possible, _SHIFT)
    enough = needed if least is None else math.ceil(largest / 2) + _BELOW
    return float(shift) if shift >= enough else None


def too_large(lse: Tensor, largest: float, task: BlockTask) -> bool:
    """Whether some logit of all processes may be too large for a sigmoid to be its exponential.

    Args:
        lse: (N,) log-sum-exps of the rows, above which there is no logit, but for its weight.
        largest: no logit is above this, either.
        task: of the sigmoids.
    """
    assert task.shift is not None
    if largest <= task.shift - _BELOW:
        return False
    found = lse.max() if len(lse) else lse.new_tensor(-torch.inf)
    lightest = math.log(task.weight) if 0 < task.weight < 1 else 0.0
    return bool(task.plan.exchange.all_reduce_max(found) > task.shift - _BELOW + lightest)


def log_sum_exp(blocks: BlockIterator, shard: EmbeddingSet, task: BlockTask) -> tuple[Tensor, Tensor]:
    """(N,) log-sum-exps of the rows and (M,) of the columns of a shard; of columns undefined if not asked for."""
    assert task.shift is not None
    columns = shard.vectors.bfloat16()
    in_row, in_column = (torch.zeros(len(part.vectors), dtype=torch.float64) for part in (blocks.rows, shard))
    for r in slices(len(in_row), _height(blocks)):
        scaled = _scaled(blocks, r)
        for c in slices(len(in_column), blocks.plan.tile):
            terms = _exponentials(blocks, r, c, shard, scaled, columns[c], task)
            in_row[r] += _sums(terms, 1)
            if task.both:
                in_column[c] += _sums(terms, 0)
    return in_row.log_().add_(task.shift), in_column.log_().add_(task.shift)


def log_sum_exp_backward(
    blocks: BlockIterator,
    shard: EmbeddingSet,
    task: BlockTask,
    of_rows: tuple[Tensor, Tensor],
    of_columns: tuple[Tensor, Tensor] | None,
) -> Tensor | None:
    """Add to the gradient of the rows; the gradient of the columns, (M, D), or None if it is not required.

    Args:
        blocks: accumulates the gradient of the rows.
        shard: the columns.
        task: of the forward pass.
        of_rows: (N,) log-sum-exps of the rows, and (N,) upstream gradients of these.
        of_columns: the same of the columns, if they have any.
    """
    assert task.shift is not None
    columns, d_rows = shard.vectors.bfloat16(), blocks.d_rows()
    row_factors = softmax_factors(*of_rows, task.shift).float()
    column_factors = None if of_columns is None else softmax_factors(*of_columns, task.shift).float()
    # Transposed, since a product whose left factor is to be transposed takes half as long again.
    d_columns = d_rows.new_zeros(d_rows.shape[1], len(columns)) if task.layout.requires_grad else None
    height, width = _height(blocks), blocks.plan.tile
    for some in slices(len(d_rows), _TOGETHER * height):
        for part in slices(len(columns), _TOGETHER * width):
            tiles = [slice(part.start + c.start, part.start + c.stop) for c in slices(part.stop - part.start, width)]
            of_tiles = [columns.new_zeros(columns.shape[1], c.stop - c.start) for c in tiles]
            for r in slices(some.stop - some.start, height):
                r = slice(some.start + r.start, some.start + r.stop)
                scaled = _scaled(blocks, r)
                transposed = scaled.T.contiguous()
                of_row = torch.zeros_like(scaled)
                for c, of_tile in zip(tiles, of_tiles, strict=True):
                    weights = _exponentials(blocks, r, c, shard, scaled, columns[c], task)
                    if column_factors is None:
                        weights.mul_(row_factors[r, None].bfloat16())
                    else:
                        weights = times_outer_sum(weights, row_factors[r], column_factors[c])
                    multiply(weights, columns[c], of_row, add=True)
                    if d_columns is not None:
                        multiply(transposed, weights, of_tile, add=True)
                d_rows[r] += of_row
            if d_columns is not None:
                for c, of_tile in zip(tiles, of_tiles, strict=True):
                    d_columns[:, c] += of_tile
    return None if d_columns is None else d_columns.T.contiguous()


def _fast() -> bool:
    """Whether oneDNN and AMX are there. Held to AVX512-BF16 on a CPU with AMX, a loss of sigmoids takes a quarter more
    time than without; on CPUs that have no AMX it has not been measured."""
    return torch.backends.mkldnn.is_available() and has_amx()


def _height(blocks: BlockIterator) -> int:
    return min(blocks.plan.tile, _ROWS)


def _scaled(blocks: BlockIterator, r: slice) -> Tensor:
    return (blocks.rows.vectors[r] * blocks.scale).bfloat16()


def _exponentials(
    blocks: BlockIterator, r: slice, c: slice, shard: EmbeddingSet, scaled: Tensor, columns: Tensor, task: BlockTask
) -> Tensor:
    """exp(logits - shift) of a tile; 0 for what is no candidate."""
    assert task.shift is not None
    terms = sigmoid_of_product(scaled, columns, task.shift)
    mask = exclusion_mask(task.rows.at(r), shard.at(c))
    if mask is not None:
        terms.masked_fill_(mask, 0.0)
    blocks.scale_owned(r, c, shard, terms, task.weight)
    return terms


def _sums(terms: Tensor, dim: int) -> Tensor:
    """Sums over one dimension in float32, but for those of its groups: a sum of bfloat16 with a result in float32 makes
    a copy in float32 first, which takes twice as long."""
    if terms.shape[dim] % _GROUPS:
        return terms.sum(dim, dtype=torch.float32)
    return terms.unflatten(dim, (_GROUPS, -1)).sum(dim + 1).sum(dim, dtype=torch.float32)

# ruff: noqa: N803  (what a kernel is compiled for is written in capitals)
# mypy: disable-error-code="no-untyped-def,import-untyped"
"""Triton kernels that turn a tile of the matrix of logits into sums, or into the derivative by its logits.

Only :mod:`mmcl.losses.blockwise.triton_blocks`, which runs them, imports this module, since triton is optional. Every
program computes one tile of ``scale · rows @ columns.T``, and no two write to the same place, so that no atomics are
needed.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 and log2 are what the hardware has
LN_2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_CONFIGS = [
    triton.Config({"BLOCK_K": 64}, num_warps=8, num_stages=3, maxnreg=128),  # two programs on a multiprocessor
    triton.Config({"BLOCK_K": 64}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_K": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_K": 64}, num_warps=8, num_stages=4),
    triton.Config({"BLOCK_K": 32}, num_warps=8, num_stages=3),
]
# The size of a tile is not tuned: the order of sums depends on it, and runs are to be reproducible.
_tuned: Any = triton.autotune(
    _CONFIGS[-1:] if INTERPRETED.value else _CONFIGS, key=["D", "ID_COLUMNS", "PRECISION"], cache_results=True
)


@triton.jit
def _place(row_count, column_count, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """This program's tile. GROUP tiles below each other come first, so that the cache keeps the columns they share."""
    down, across = tl.cdiv(row_count, BLOCK_M), tl.cdiv(column_count, BLOCK_N)
    number = tl.program_id(0)
    first = number // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    within = number % (GROUP * across)
    return first + within % height, within // height


@triton.jit
def _similarities(
    rows, columns, row_at, column_at, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) inner products, added up in float32."""
    k = tl.arange(0, BLOCK_K)
    ours = rows + row_at[:, None] * D + k[None, :]
    theirs = columns + column_at[None, :] * D + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, D, BLOCK_K):
        if D % BLOCK_K == 0:
            a, b = tl.load(ours + start), tl.load(theirs + start)
        else:
            a = tl.load(ours + start, mask=k[None, :] < D - start, other=0.0)
            b = tl.load(theirs + start, mask=k[:, None] < D - start, other=0.0)
        if INTERPRETED:  # which would multiply the bits of bfloat16 as integers
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def _logits(
    rows, columns, scale, row_ids, column_ids, owner, own_log_weight, row_count, column_count, row_start,
    tile_m, tile_n, D: tl.constexpr, ID_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of logits, -∞ for what is no candidate; the places of its rows, and of its columns."""
    row_at = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column_at = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Past the end the last one is read again, so that the product needs no mask; its results are discarded.
    row_read, column_read = tl.minimum(row_at, row_count - 1), tl.minimum(column_at, column_count - 1)
    z = _similarities(rows, columns, row_read, column_read, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K) * tl.load(scale)
    if owner is not None:
        own_row = (tl.load(owner + column_read) - row_start).to(tl.int32)
        z = tl.where(own_row[None, :] == row_at[:, None], z + own_log_weight, z)
    counts = (row_at < row_count)[:, None] & (column_at < column_count)[None, :]
    for c in tl.static_range(ID_COLUMNS):
        ours = tl.load(row_ids + row_read * ID_COLUMNS + c)
        theirs = tl.load(column_ids + column_read * ID_COLUMNS + c)
        counts &= ours[:, None] != theirs[None, :]
    return tl.where(counts, z, float("-inf")), row_at, column_at


@triton.jit
def _log_sum_exp(z, AXIS: tl.constexpr):
    """Log-sum-exp along an axis; -∞ where there is no candidate."""
    top = tl.max(z, axis=AXIS)
    top = tl.where(top == float("-inf"), 0.0, top)
    terms = tl.exp2((z - tl.expand_dims(top, AXIS)) * LOG2_E)
    return top + tl.log2(tl.sum(terms, axis=AXIS)) * LN_2


@_tuned
@triton.jit
def log_sum_exp_tile(
    rows, columns, scale, row_ids, column_ids, owner, own_log_weight, shift, row_out, column_out,
    row_count, column_count, row_start, D: tl.constexpr, ID_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps of the tile into row_out[tile's column] and column_out[tile's row]; with a shift, sums of
    exp(z - shift), which serves rows and columns alike and needs no maxima."""
    tile_m, tile_n = _place(row_count, column_count, BLOCK_M, BLOCK_N, GROUP)
    z, row_at, column_at = _logits(
        rows, columns, scale, row_ids, column_ids, owner, own_log_weight, row_count, column_count, row_start,
        tile_m, tile_n, D, ID_COLUMNS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    row_out += tile_n * row_count + row_at
    if shift is not None:
        terms = tl.exp2((z - shift) * LOG2_E)
        tl.store(row_out, tl.sum(terms, axis=1), mask=row_at < row_count)
        if column_out is not None:
            column_out += tile_m * column_count + column_at
            tl.store(column_out, tl.sum(terms, axis=0), mask=column_at < column_count)
    else:
        tl.store(row_out, _log_sum_exp(z, 1), mask=row_at < row_count)
        if column_out is not None:
            column_out += tile_m * column_count + column_at
            tl.store(column_out, _log_sum_exp(z, 0), mask=column_at < column_count)


@_tuned
@triton.jit
def softmax_weights_tile(
    rows, columns, scale, row_ids, column_ids, owner, own_log_weight, shift,
    row_lse, row_weight, column_lse, column_weight, out, out_stride,
    row_count, column_count, row_start, D: tl.constexpr, ID_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The derivative by the logits, rounded to the type of ``out``: row_weight · exp(z - row_lse) and the same of the
    columns; with a shift, exp(z - shift) · (row_weight + column_weight)."""
    tile_m, tile_n = _place(row_count, column_count, BLOCK_M, BLOCK_N, GROUP)
    z, row_at, column_at = _logits(
        rows, columns, scale, row_ids, column_ids, owner, own_log_weight, row_count, column_count, row_start,
        tile_m, tile_n, D, ID_COLUMNS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    in_rows, in_columns = row_at < row_count, column_at < column_count
    weights = tl.load(row_weight + row_at, mask=in_rows, other=0.0)[:, None]
    if shift is not None:
        if column_weight is not None:
            weights += tl.load(column_weight + column_at, mask=in_columns, other=0.0)[None, :]
        weights *= tl.exp2((z - shift) * LOG2_E)
    else:
        lse = tl.load(row_lse + row_at, mask=in_rows, other=0.0)
        weights *= tl.exp2((z - lse[:, None]) * LOG2_E)
        if column_weight is not None:
            lse = tl.load(column_lse + column_at, mask=in_columns, other=0.0)
            column_weights = tl.load(column_weight + column_at, mask=in_columns, other=0.0)
            weights += column_weights[None, :] * tl.exp2((z - lse[None, :]) * LOG2_E)
    places = out + row_at[:, None] * out_stride + column_at[None, :]
    tl.store(places, weights.to(out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) and its derivative, with full relative precision for small values, of which B² are added."""
    small = tl.exp2(-tl.abs(x) * LOG2_E)
    series = small * (1.0 - small * (0.5 - small * (1.0 / 3.0 - small * 0.25)))
    value = tl.maximum(x, 0.0) + tl.where(small < 0.03125, series, tl.log2(1.0 + small) * LN_2)
    return value, tl.where(x < 0.0, small, 1.0) / (1.0 + small)


@_tuned
@triton.jit
def softplus_tile(
    rows, columns, scale, row_ids, column_ids, owner, own_log_weight, bias,
    value_out, slope_out, row_weight, out, out_stride,
    row_count, column_count, row_start, D: tl.constexpr, ID_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Sums of log(1 + exp(z + bias)) and of its derivative into value_out[tile's column] and slope_out[tile's column];
    or, if there is an ``out``, row_weight times the derivative into it."""
    tile_m, tile_n = _place(row_count, column_count, BLOCK_M, BLOCK_N, GROUP)
    z, row_at, column_at = _logits(
        rows, columns, scale, row_ids, column_ids, owner, own_log_weight, row_count, column_count, row_start,
        tile_m, tile_n, D, ID_COLUMNS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    value, slope = _softplus(z + tl.load(bias))
    in_rows = row_at < row_count
    if out is not None:
        weights = tl.load(row_weight + row_at, mask=in_rows, other=0.0)[:, None] * slope
        places = out + row_at[:, None] * out_stride + column_at[None, :]
        tl.store(places, weights.to(out.dtype.element_ty), mask=in_rows[:, None] & (column_at < column_count)[None, :])
    else:
        place = tile_n * row_count + row_at
        tl.store(value_out + place, tl.sum(value, axis=1), mask=in_rows)
        tl.store(slope_out + place, tl.sum(slope, axis=1), mask=in_rows)

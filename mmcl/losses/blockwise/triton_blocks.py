"""Blocks of the matrix of logits on CUDA: Triton kernels reduce tiles of logits, or turn them into derivatives, and
cuBLAS multiplies these.

B queries and B keys of D dimensions take 2·B²·D operations in the forward pass, which computes the log-sum-exps of rows
and of columns at once, and 6·B²·D in the backward pass. That computes each block of the matrix again, as the derivative
by its logits in the type of the embeddings, and multiplies it with the columns and, transposed, with the rows. In all
these are 8·B²·D operations; a dense loss, which keeps its logits, takes 6·B²·D. A kernel for each gradient that stores
no block would compute the logits twice (10·B²·D), and more often if the D sums of a tile's rows exceed the registers,
at a D of about 256. A block takes 128 MiB in bfloat16, whatever B and D are.

There are no atomics and every sum has a fixed order, so that results are reproducible bit for bit. Nothing here knows
autograd.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.losses.blockwise.blocks import slices, softmax_factors

PROGRAM_TILE = 128  # rows and columns of a program
GROUP = 8  # consecutive programs on the same columns, which the cache keeps
FORWARD_BLOCK = 32_768  # rows and columns of a launch, which writes 2 · FORWARD_BLOCK² / PROGRAM_TILE sums
BACKWARD_BLOCK = 8_192  # of a launch that writes BACKWARD_BLOCK² derivatives; times 512 columns these fill an H100
FLOAT32_PRECISION = "tf32x3"  # three products on tensor cores, to some 22 bits; "ieee" leaves the tensor cores idle


def available(tensor: Tensor) -> bool:
    """Whether the kernels run on ``tensor``: float32 or bfloat16, on CUDA from Ampere on, with triton installed.

    With ``TRITON_INTERPRET=1`` they run on the CPU instead, slowly, for tests.
    """
    if tensor.dtype not in (torch.float32, torch.bfloat16) or importlib.util.find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return tensor.device.type == "cpu"
    cuda = tensor.is_cuda and torch.version.hip is None
    return cuda and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


@dataclass(frozen=True)
class Logits:
    """``scale · rows @ columns.T``, and which of its entries are candidates.

    Attributes:
        rows: (N, D), float32 or bfloat16.
        columns: (M, D), of the same type.
        scale: one element.
        row_ids: (N,) or (N, C) int64; rows and columns that agree in any of the C are duplicates, no candidates.
        column_ids: (M,) or (M, C) int64, with ``row_ids``.
        owner: (M,) int64, the row that owns a column; -1, or any other number outside of the rows, for none.
        own_weight: factor of a column's term in its owner's row; with 0 it is no candidate there.
    """

    rows: Tensor
    columns: Tensor
    scale: Tensor
    row_ids: Tensor | None = None
    column_ids: Tensor | None = None
    owner: Tensor | None = None
    own_weight: float = 0.0

    def blocks(self, side: int) -> Iterator[_Block]:
        """The matrix in blocks of at most ``side`` rows and columns."""
        rows, columns = self.rows.contiguous(), self.columns.contiguous()
        scale = self.scale.detach().float().reshape(1)
        ids = [None, None]
        if self.row_ids is not None and self.column_ids is not None:
            ids = [(x[:, None] if x.ndim == 1 else x).contiguous() for x in (self.row_ids, self.column_ids)]  # type: ignore[misc]
        for r in slices(len(rows), side):
            for c in slices(len(columns), side):
                tensors = rows[r], columns[c], scale, _part(ids[0], r), _part(ids[1], c), _part(self.owner, c)
                yield _Block(tensors, r, c, math.log(self.own_weight) if self.own_weight else -math.inf)


def log_sum_exp(logits: Logits, *, shift: float | None = None, both: bool = True) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of the candidates in each row, and in each column.

    Args:
        logits: the matrix.
        shift: a number c for which no sum of exp(z - c) overflows and no term that matters underflows; if absent,
            maxima are computed first.
        both: compute those of the columns, too.

    Returns:
        (N,) and, if ``both``, (M,), float64; -∞ where there is no candidate.
    """
    from mmcl.losses.blockwise.triton_kernels import log_sum_exp_tile

    by_row = _empty(logits.rows)
    by_column = _empty(logits.columns) if both else None
    for block in logits.blocks(FORWARD_BLOCK):
        in_rows = by_row.new_empty(block.across, block.height, dtype=torch.float32)
        in_columns = by_row.new_empty(block.down, block.width, dtype=torch.float32) if both else None
        block.launch(log_sum_exp_tile, shift, in_rows, in_columns)
        _merge(by_row[block.r], in_rows, shift)
        if by_column is not None and in_columns is not None:
            _merge(by_column[block.c], in_columns, shift)
    return by_row, by_column


def log_sum_exp_backward(
    logits: Logits,
    d_rows: Tensor,
    row_lse: Tensor,
    row_grad: Tensor,
    column_lse: Tensor | None = None,
    column_grad: Tensor | None = None,
    *,
    shift: float | None = None,
    columns_require_grad: bool = True,
) -> Tensor | None:
    """The gradient of a function of log-sum-exps by rows and columns.

    Args:
        logits: the matrix.
        d_rows: (N, D) float32, to which the gradient of the rows is added, without the factor ``scale``. The gradient
            of ``scale`` is the sum of its products with ``rows``.
        row_lse: (N,) log-sum-exp of the rows, over these and possibly more columns.
        row_grad: (N,) upstream gradient of it.
        column_lse: (M,) log-sum-exp of the columns, over these and possibly more rows.
        column_grad: (M,) upstream gradient of it, with ``column_lse``.
        shift: as in :func:`log_sum_exp`.
        columns_require_grad: whether to compute the gradient of the columns.

    Returns:
        (M, D) float32, the gradient of the columns; None if it is not required.
    """
    from mmcl.losses.blockwise.triton_kernels import softmax_weights_tile

    of_rows = _softmax_terms(row_lse, row_grad, shift)
    of_columns: tuple[Tensor | None, Tensor | None] = (None, None)
    if column_lse is not None and column_grad is not None:
        of_columns = _softmax_terms(column_lse, column_grad, shift)
    products = _GradientProducts(logits, d_rows, columns_require_grad=columns_require_grad)
    for block in logits.blocks(BACKWARD_BLOCK):
        statistics = *(_part(x, block.r) for x in of_rows), *(_part(x, block.c) for x in of_columns)
        weights = products.workspace(block)
        block.launch(softmax_weights_tile, shift, *statistics, weights, weights.stride(0))
        products.add(block, weights)
    return products.finish()


def softplus_sum(logits: Logits, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the candidates of each row, (N,) float64: of log(1 + exp(z + bias)), and of its derivative by bias."""
    from mmcl.losses.blockwise.triton_kernels import softplus_tile

    bias = bias.detach().float().reshape(1)
    totals = torch.zeros(2, len(logits.rows), dtype=torch.float64, device=logits.rows.device)
    for block in logits.blocks(FORWARD_BLOCK):
        sums = totals.new_empty(2, block.across, block.height, dtype=torch.float32)
        block.launch(softplus_tile, bias, *sums.unbind(), None, None, 0)
        totals[:, block.r] += sums.sum(dim=1, dtype=torch.float64)
    value, slope = totals.unbind()
    return value, slope


def softplus_sum_backward(logits: Logits, bias: Tensor, d_rows: Tensor, row_grad: Tensor) -> Tensor | None:
    """The gradient of a function of the first sums of :func:`softplus_sum` by rows and columns.

    Args:
        logits: the matrix.
        bias: one element.
        d_rows: as in :func:`log_sum_exp_backward`.
        row_grad: (N,) upstream gradient of the sums.

    Returns:
        (M, D) float32, the gradient of the columns. That of ``bias`` is the sum of row_grad times the second sums.
    """
    from mmcl.losses.blockwise.triton_kernels import softplus_tile

    bias, row_grad = bias.detach().float().reshape(1), row_grad.float()
    products = _GradientProducts(logits, d_rows)
    for block in logits.blocks(BACKWARD_BLOCK):
        weights = products.workspace(block)
        block.launch(softplus_tile, bias, None, None, row_grad[block.r], weights, weights.stride(0))
        products.add(block, weights)
    return products.finish()


@dataclass(frozen=True)
class _Block:
    """Rows and columns of a launch; offsets within it fit into 32 bits, however large the matrix is."""

    tensors: tuple[Tensor | None, ...]
    r: slice
    c: slice
    own_log_weight: float

    @property
    def height(self) -> int:
        return self.r.stop - self.r.start

    @property
    def width(self) -> int:
        return self.c.stop - self.c.start

    @property
    def down(self) -> int:
        """Number of tiles from top to bottom."""
        return -(-self.height // PROGRAM_TILE)

    @property
    def across(self) -> int:
        """Number of tiles from left to right."""
        return -(-self.width // PROGRAM_TILE)

    def launch(self, kernel: Any, *arguments: Tensor | float | None) -> None:
        """One program for each tile."""
        rows, ids = self.tensors[0], self.tensors[3]
        assert rows is not None
        with torch.cuda.device_of(rows):
            kernel[(self.down * self.across,)](
                *self.tensors,
                self.own_log_weight,
                *arguments,
                self.height,
                self.width,
                self.r.start,
                D=rows.shape[1],
                ID_COLUMNS=0 if ids is None else ids.shape[1],
                PRECISION=FLOAT32_PRECISION,
                BLOCK_M=PROGRAM_TILE,
                BLOCK_N=PROGRAM_TILE,
                GROUP=GROUP,
            )


class _GradientProducts:
    """Accumulates the gradients of rows and columns from the derivatives by the logits of block after block."""

    def __init__(self, logits: Logits, d_rows: Tensor, *, columns_require_grad: bool = True) -> None:
        self.rows, self.columns = logits.rows, logits.columns
        self.scale = logits.scale.detach().float()
        self.d_rows = d_rows
        self.d_columns = torch.zeros_like(logits.columns, dtype=torch.float32) if columns_require_grad else None
        height, width = (min(len(x), BACKWARD_BLOCK) for x in (self.rows, self.columns))
        # The wide loads of tensor cores need aligned rows.
        self._memory = self.rows.new_empty(height, -(-width // PROGRAM_TILE) * PROGRAM_TILE)

    def workspace(self, block: _Block) -> Tensor:
        """Memory for the derivatives by the block's logits, the same for every block."""
        return self._memory[: block.height, : block.width]

    def add(self, block: _Block, weights: Tensor) -> None:
        _add_product(self.d_rows[block.r], weights, self.columns[block.c])
        if self.d_columns is not None:
            _add_product(self.d_columns[block.c], weights.T, self.rows[block.r])

    def finish(self) -> Tensor | None:
        """The gradient of the columns, if it is required."""
        return None if self.d_columns is None else self.d_columns.mul_(self.scale)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add (N, K) @ (K, D) to ``total`` in place, summing in float32."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def _empty(vectors: Tensor) -> Tensor:
    return torch.full((len(vectors),), -torch.inf, dtype=torch.float64, device=vectors.device)


def _merge(total: Tensor, found: Tensor, shift: float | None) -> None:
    """Merge the results of a launch, (tiles, N), into the log-sum-exps ``total``, (N,), in place."""
    lse = found.double().logsumexp(dim=0) if shift is None else found.sum(dim=0, dtype=torch.float64).log() + shift
    torch.logaddexp(total, lse, out=total)


def _softmax_terms(lse: Tensor, grad: Tensor, shift: float | None) -> tuple[Tensor | None, Tensor]:
    """(N,) log-sum-exps and upstream gradients, of which kernels make the derivative by logits; with a shift, None and
    the factors of exp(z - shift)."""
    lse, grad = lse.double(), grad.double()
    empty = lse < -1e29  # of no candidates, where exp(z - lse) would be undefined
    if shift is None:
        return lse.masked_fill(empty, torch.inf).float(), grad.float()
    return None, softmax_factors(lse, grad, shift).masked_fill(empty, 0.0).float()


def _part(tensor: Tensor | None, at: slice) -> Tensor | None:
    return None if tensor is None else tensor[at]

"""A matrix of logits computed tile by tile, forward and backward, in O(N·D) memory.

The forward pass keeps a few numbers for each row and column. The backward pass computes each tile again, replaces it by
the derivative by its logits, and multiplies that with the tile's columns and rows. That is four matrix products of
2·B²·D operations: one more than the dense loss here takes, and two fewer than a loss takes that computes the logits of
either direction, such as OpenCLIP's (FlashAttention has the same idea, Dao et al. 2022, arXiv:2205.14135; for InfoNCE
see Cheng et al. 2024, arXiv:2410.17243).

Statistics are of all columns except a row's own positive. A loss adds that in the end, which keeps 1 - p exact where p
is near 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from mmcl.losses.blockwise.plan import BlockPlan
from mmcl.losses.logits.candidates import EmbeddingSet
from mmcl.losses.logits.similarity import similarities
from mmcl.runtime.device import widest
from mmcl.runtime.products import multiply

Wanted = Callable[[slice, slice], bool]
"""Whether the tile of these rows and columns is to be computed."""


class BlockIterator:
    """Tiles of logits between the rows of this process and shards of columns; accumulates the gradients of rows and
    scale.

    Args:
        rows: of this process.
        scale: number by which similarities are multiplied.
        plan: how the matrix is computed.

    Attributes:
        d_scale: gradient of the scale.
    """

    def __init__(self, rows: EmbeddingSet, scale: Tensor, plan: BlockPlan) -> None:
        self.rows, self.scale, self.plan = rows, scale, plan
        self.d_scale = torch.zeros((), dtype=widest(scale.device), device=scale.device)
        self._d_rows: Tensor | None = None
        self._workspaces: dict[str, Tensor] = {}

    def workspace(self, name: str, height: int, width: int) -> Tensor:
        """An uninitialised matrix in the memory of the last one of this name."""
        if name not in self._workspaces or self._workspaces[name].numel() < height * width:
            self._workspaces[name] = self.rows.vectors.new_empty(height * width)
        return self._workspaces[name][: height * width].view(height, width)

    def tiles(self, columns: EmbeddingSet, wanted: Wanted | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows and columns of each tile that is ``wanted``, and its logits, which the next tile overwrites."""
        for r, c, _, z in self._tiles(columns, wanted):
            yield r, c, z

    def _tiles(self, columns: EmbeddingSet, wanted: Wanted | None) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        for r in slices(len(self.rows.vectors), self.plan.tile):
            scaled = self.rows.vectors[r] * self.scale
            for c in slices(len(columns.vectors), self.plan.tile):
                if wanted is not None and not wanted(r, c):
                    continue
                z = self.workspace("logits", len(scaled), c.stop - c.start)
                if self.plan.similarity == "euclidean":
                    torch.mul(similarities(self.rows.vectors[r], columns.vectors[c], "euclidean"), self.scale, out=z)
                else:
                    multiply(scaled, columns.vectors[c].T, z, precision=self.plan.precision)
                yield r, c, scaled, z

    def owned(self, r: slice, c: slice, columns: EmbeddingSet) -> tuple[Tensor, Tensor, Tensor] | None:
        """For each column of a tile: whether its owner is among the rows; the row of the owner, clamped to the tile;
        and the column. None if columns have no owners."""
        if columns.owner is None:
            return None
        row = columns.owner[c] - (self.plan.exchange.row_offset + r.start)
        height = r.stop - r.start
        present = (row >= 0) & (row < height)
        return present, row.clamp(0, height - 1), torch.arange(len(row), device=row.device)

    def scale_owned(self, r: slice, c: slice, columns: EmbeddingSet, terms: Tensor, weight: float) -> None:
        """Multiply the terms of a tile by ``weight``, in place, where a column meets its owner."""
        found = self.owned(r, c, columns)
        if found is not None:
            present, row, column = found
            values = terms[row, column]
            terms[row, column] = torch.where(present, values * weight, values)

    def accumulate_gradients(
        self,
        columns: EmbeddingSet,
        derivative: Callable[[slice, slice, Tensor], Tensor],
        *,
        columns_require_grad: bool = True,
        wanted: Wanted | None = None,
    ) -> Tensor | None:
        """Add to the gradients of rows and scale; the gradient of the columns, (M, D), or None if it is not required.

        Args:
            columns: the shard of the forward pass.
            derivative: replaces a tile of logits by the derivative by them.
            columns_require_grad: whether to compute the gradient of the columns.
            wanted: the tiles whose derivative is not 0; all of them if absent.
        """
        d_rows = self.d_rows()
        d_columns = torch.zeros_like(columns.vectors) if columns_require_grad else None
        for r, c, scaled, z in self._tiles(columns, wanted):
            weights, d_block = derivative(r, c, z), d_rows[r]
            if self.plan.similarity == "euclidean":
                a, b = (part.vectors[at].detach().requires_grad_() for part, at in ((self.rows, r), (columns, c)))
                with torch.enable_grad():
                    values = similarities(a, b, "euclidean")
                d_a, d_b = torch.autograd.grad(values, (a, b), weights)
                d_block += d_a
                self.d_scale += (weights * values.detach()).sum(dtype=self.d_scale.dtype)
                if d_columns is not None:
                    d_columns[c] += d_b * self.scale
            else:
                multiply(weights, columns.vectors[c], d_block, precision=self.plan.precision, add=True)
                if d_columns is not None:
                    multiply(weights.T, scaled, d_columns[c], precision=self.plan.precision, add=True)
        return d_columns

    def d_rows(self) -> Tensor:
        """(N, D) accumulator of the gradient of the rows, without the factor scale."""
        if self._d_rows is None:
            self._d_rows = torch.zeros_like(self.rows.vectors)
        return self._d_rows

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The gradients of rows, (N, D), and of the scale. To be called once, in the end."""
        d_rows = self.d_rows()
        if self.plan.similarity != "euclidean":
            # Σ_j derivative_ij · similarity_ij = row i · its gradient
            for r in slices(len(d_rows), self.plan.tile):
                self.d_scale += (self.rows.vectors[r] * d_rows[r]).sum(dtype=self.d_scale.dtype)
        return d_rows.mul_(self.scale), self.d_scale.to(self.scale.dtype)


def softmax_factors(lse: Tensor, by_lse: Tensor, shift: float) -> Tensor:
    """(N,) factors by which exp(logit - shift) becomes the derivative by the logits of a row.

    Args:
        lse: (N,) log-sum-exps of the rows.
        by_lse: (N,) upstream gradients of them.
        shift: number that was subtracted from all logits.
    """
    # In logarithms: where all others are far below the positive, one factor overflows and the other is 0.
    return by_lse.sign() * (by_lse.abs().log() + (shift - lse)).exp()


def slices(count: int, size: int) -> Iterator[slice]:
    """0 … count in slices of at most ``size``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def no_double_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator for the ``backward`` of an autograd function: it runs without recording a graph and outside of
    autocast, and differentiating its result raises ``RuntimeError``."""

    @wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad(), torch.autocast(grads[0].device.type, enabled=False):
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        # Every input is an argument of the function that raises: autograd skips functions that no wanted tensor enters.
        given = [gradient for gradient in found if gradient is not None]
        results = iter(_NoDoubleBackward.apply(len(given), *given, *grads, *ctx.saved_tensors))
        return tuple(None if gradient is None else next(results) for gradient in found)

    return wrapped


class _NoDoubleBackward(torch.autograd.Function):
    """The first ``count`` tensors, as results that depend on all tensors and have no derivative."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("a loss in tiles has no second derivative; Blockwise(tile=None) has one")

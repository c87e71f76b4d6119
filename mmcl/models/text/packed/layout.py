"""Where the tokens of several texts stand: end to end for what is computed token by token, and in rows of equal length
for attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS_A_BLOCK = 512
SCORES_A_BLOCK = 2**18
"""Of a block of attention, all heads together: it stays in the caches. BERT of 12 heads on one core of an EPYC 9005,
microseconds a token with 2^16, 2^17, 2^18, 2^19 and 2^20 scores: 1.6, 1.5, 1.6, 1.9, 5.8 at 32 tokens, 2.3, 2.2, 1.9,
2.0, 2.2 at 64."""
LEAST_ROWS = 16
"""Products of fewer rows may take other kernels, whose sums are in another order."""


class Block(NamedTuple):
    """Consecutive texts that attention takes together, each filled up to one length.

    Attributes:
        texts: how many, with those that are padding alone.
        length: of each, with its padding.
        gather: (texts · length,) row of the batch of each token; padding is a text's last token. None: as they stand.
        rows: the block's rows of the batch.
        kept: (T,) where among the gathered tokens those of the texts stand.
        padding: (texts, length) True for padding.
    """

    texts: int
    length: int
    gather: Tensor
    rows: slice
    kept: Tensor
    padding: Tensor


class Layout(NamedTuple):
    """Texts of a batch, end to end.

    Attributes:
        rows: of the batch: those of the tokens, and unused ones up to :func:`padded_rows`.
        tokens: how many there are.
        longest: most tokens of a text.
        blocks: all texts in their order.
    """

    rows: int
    tokens: int
    longest: int
    blocks: list[Block]


def padded_length(length: int, dtype: torch.dtype = torch.float32) -> int:
    """To how many tokens attention fills up a text of ``length``.

    It depends on nothing else, so that a text's sums have one order whatever stands beside it. In bfloat16 a vector has
    32 numbers: 96 tokens take less time than 80 (one core of a Xeon with AMX, 225 and 350 microseconds a text).
    """
    step = 16 if length <= (64 if dtype == torch.bfloat16 else 128) else 32 if length <= 256 else 64
    return -(-length // step) * step


def padded_rows(count: int) -> int:
    """How many rows a product of ``count`` rows has.

    oneDNN keeps what it prepared for each shape, of up to 1,024 of them, with AMX half a megabyte. Up to 2,048 rows
    there are 44 of these numbers; from 1,024 on they hold 2% of padding on average.
    """
    step = LEAST_ROWS if count <= 16 * LEAST_ROWS else 4 * LEAST_ROWS
    return -(-count // step) * step


def lay_out(lengths: Sequence[int], heads: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Layout:
    """The layout of texts of so many tokens each, whose states are of ``dtype``."""
    blocks: list[Block] = []
    start = 0
    for length, group in groupby(lengths, partial(padded_length, dtype=dtype)):
        most = max(1, min(ROWS_A_BLOCK // length, SCORES_A_BLOCK // (heads * length**2)))
        step = max(1, 4 * LEAST_ROWS // length)  # of few shapes too
        found = list(group)
        for first in range(0, len(found), most):
            some = found[first : first + most]
            unused = min(-len(some) % step, most - len(some))
            blocks.append(_block(np.array(some + [0] * unused), length, start, device))
            start = blocks[-1].rows.stop
    return Layout(padded_rows(start), start, max(lengths), blocks)


def _block(lengths: np.ndarray, length: int, start: int, device: torch.device) -> Block:
    places = np.arange(length)
    padding = places >= lengths[:, None]
    begins = np.cumsum(lengths) - lengths
    gather = start + begins[:, None] + np.minimum(places, lengths[:, None] - 1)  # of no tokens: those of the last text
    return Block(
        texts=len(lengths),
        length=length,
        gather=torch.from_numpy(gather.ravel()).to(device),
        rows=slice(start, start + int(lengths.sum())),
        kept=torch.from_numpy(np.flatnonzero(~padding)).to(device),
        padding=torch.from_numpy(padding).to(device),
    )


def padded_layout(lengths: Sequence[int], device: torch.device) -> Layout:
    """The same texts in one block, each as long as the longest."""
    block = _block(np.array(lengths), max(lengths), 0, device)
    return Layout(block.rows.stop, block.rows.stop, block.length, [block])


def fill(rows: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """(texts · length, ...) rows of each block, each text filled up by its last token. Gradient to these is none:
    nothing may depend on what a text is filled up with."""
    filled: tuple[Tensor, ...] = _Fill.apply(rows, layout)
    return filled


def strip(filled: Sequence[Tensor], layout: Layout) -> Tensor:
    """(rows, ...) of the layout, given those of each block: the inverse of :func:`fill`; unused rows are 0."""
    rows: Tensor = _Strip.apply(layout, *filled)
    return rows


class _Fill(torch.autograd.Function):
    """See :func:`fill`. The gradient is looked up as well, rather than added up row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        ctx.layout, ctx.count = layout, len(rows)
        return tuple(rows.index_select(0, block.gather) for block in layout.blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _stripped(ctx.layout, grads), None


class _Strip(torch.autograd.Function):
    """See :func:`strip`."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, *filled: Tensor) -> Tensor:
        ctx.layout = layout
        return _stripped(layout, filled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks = ctx.layout.blocks
        filled = (grad.index_select(0, block.gather).masked_fill_(block.padding.view(-1, 1), 0.0) for block in blocks)
        return None, *filled


def _stripped(layout: Layout, filled: Sequence[Tensor]) -> Tensor:
    rows = filled[0].new_empty(layout.rows, *filled[0].shape[1:])
    for block, values in zip(layout.blocks, filled, strict=True):
        torch.index_select(values, 0, block.kept, out=rows[block.rows])
    rows[layout.tokens :] = 0.0
    return rows

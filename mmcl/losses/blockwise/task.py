"""What an autograd function over a matrix of logits is called with, and whether Triton kernels compute it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcl.losses.blockwise import triton_blocks
from mmcl.losses.blockwise.blocks import BlockIterator
from mmcl.losses.blockwise.plan import BlockPlan, ColumnLayout
from mmcl.losses.logits.candidates import EmbeddingSet


class BlockTask(NamedTuple):
    """The arguments of an autograd function besides the tensors that gradient flows to.

    It holds no vectors: autograd saves these, and notices if they are changed before the backward pass.

    Attributes:
        rows: of this process, without vectors.
        columns: of this process, without vectors.
        layout: of the columns.
        plan: how the matrix is computed.
        both: compute statistics of columns, too.
        totals: compute sums and counts of logits, too.
        weight: factor of a column's term in its owner's row; with 0 it is no candidate there.
        shift: number subtracted from all logits before an exponential that serves rows and columns; None if there is no
            such number.
        in_sigmoids: that exponential is a sigmoid in bfloat16 (:mod:`mmcl.losses.blockwise.sigmoid_blocks`).
        compete: positives are among the candidates of their denominators, where a row may have several.
    """

    rows: EmbeddingSet
    columns: EmbeddingSet
    layout: ColumnLayout
    plan: BlockPlan
    both: bool = False
    totals: bool = False
    weight: float = 0.0
    shift: float | None = None
    in_sigmoids: bool = False
    compete: bool = False

    @classmethod
    def of(
        cls, rows: EmbeddingSet, columns: EmbeddingSet, layout: ColumnLayout, plan: BlockPlan, **options: Any
    ) -> BlockTask:
        """The task without the vectors of ``rows`` and ``columns``."""
        empty = (part.vectors.new_empty(0) for part in (rows, columns))
        return cls(rows, columns, layout, plan, **options).with_vectors(*empty)

    def with_vectors(self, rows: Tensor, columns: Tensor) -> BlockTask:
        return self._replace(rows=self.rows._replace(vectors=rows), columns=self.columns._replace(vectors=columns))

    @property
    def masks(self) -> list[Tensor]:
        """The tensors that decide which columns are candidates, for autograd to save as well."""
        return [tensor for part in (self.rows, self.columns) for tensor in part[1:] if tensor is not None]

    @property
    def in_kernels(self) -> bool:
        """Whether the Triton kernels know all rules of this task, and run here. They know no guide, and not that a
        duplicate of a row is a candidate where it is of its group: these tasks run in tiles by torch."""
        guided = self.rows.guide is not None and self.columns.guide is not None
        grouped = self.rows.ids is not None and self.rows.group is not None and self.columns.group is not None
        known = not guided and not grouped and not self.totals and self.plan.similarity != "euclidean"
        return known and triton_blocks.available(self.rows.vectors)


def kernel_logits(blocks: BlockIterator, shard: EmbeddingSet, weight: float) -> triton_blocks.Logits:
    """The logits of rows and a shard of columns, for the Triton kernels."""
    rows, plan = blocks.rows, blocks.plan
    dtype = torch.bfloat16 if plan.precision == "bfloat16" else rows.vectors.dtype
    owner = None if shard.owner is None else shard.owner - plan.exchange.row_offset
    vectors = rows.vectors.to(dtype), shard.vectors.to(dtype)
    return triton_blocks.Logits(*vectors, blocks.scale, rows.ids, shard.ids, owner, weight)

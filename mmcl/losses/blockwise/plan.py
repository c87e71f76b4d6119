"""How the matrix of logits of a loss is computed: what the caller asks for, and what follows from it for a batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmcl.losses.blockwise.exchange import Combine, LocalExchange, make_exchange
from mmcl.losses.logits.candidates import Candidates, EmbeddingSet
from mmcl.losses.logits.similarity import Similarity
from mmcl.runtime.device import multiplies_bfloat16
from mmcl.runtime.products import Precision, allowed_precision

# GFLOP/s of a loss of 4,096 pairs of 512 dimensions, by its tiles, on a busy core of an AMD EPYC 9005:
#     tile        256   512   768   1024   1536   2048
#     float32     127   147   159    174    182    185
#     bfloat16    155   192   205    217    227    227
# A small tile costs the calls of some forty operations. One of 1024 and its factors take 8 MB in float32, which fit
# into the last cache of a CPU; four times as much brings 5%.
TILE = 1024  # rows and columns
DENSE = 1024  # a matrix of up to this number, squared, is held in memory by default

Tile = int | Literal["auto"] | None
Across = Literal["gather", "ring"] | None


@dataclass(frozen=True)
class Blockwise:
    """How a matrix of logits between all queries and all keys is computed. The result does not depend on it, but for
    rounding.

    Attributes:
        tile: rows and columns of the tiles in which the matrix is computed, and computed again for the gradient, in
            O((N + K)·D) memory. None holds the matrix in memory; ``auto`` does so up to 1,024² logits. Where the
            hardware multiplies bfloat16, and all embeddings are bfloat16 or ``torch.set_float32_matmul_precision`` is
            ``medium``, tiles are products of bfloat16 accumulated in float32: gradients of embeddings are then within
            1% of their norm, at temperatures of 0.02 or less within 3%. Tiles have no second derivative.
        across: None if the arguments of the loss are the global batch. Otherwise each process of the default group
            passes its own rows (their number may differ, or be 0), and all processes get the loss of the global batch.
            Each process computes its queries against the keys of all: ``gather`` holds all keys at once; ``ring``
            passes them around, holds those of at most two processes, and transfers the next ones during the
            computation. The backward pass gives each of W processes W times its own contribution to the gradient of
            embeddings and temperature, since data parallelism averages over processes. No effect with one process.

    >>> import torch
    >>> from mmcl.losses import info_nce
    >>> image = torch.eye(8)
    >>> info_nce(image, image, blockwise=Blockwise(tile=4)).item() < 1e-4
    True
    """

    tile: Tile = "auto"
    across: Across = None


DEFAULT = Blockwise()


class ColumnLayout(NamedTuple):
    """How the keys of a batch, or its negatives, are distributed over the processes.

    Attributes:
        counts: number of columns of each process.
        requires_grad: whether gradient flows to the columns of any process. If so, all processes take part in the
            reduction of gradients; a queue of earlier keys needs none.
    """

    counts: list[int]
    requires_grad: bool


@dataclass(frozen=True)
class BlockPlan:
    """How the matrix of a batch is computed.

    Attributes:
        similarity: its elements, before they are scaled.
        tile: rows and columns of a tile.
        exchange: gives access to the columns of other processes.
        keys: layout of the keys.
        negatives: layout of the negatives.
        precision: of the products.
    """

    similarity: Similarity
    tile: int
    exchange: LocalExchange
    keys: ColumnLayout
    negatives: ColumnLayout
    precision: Precision = "full"

    def map_shards(
        self,
        columns: EmbeddingSet,
        layout: ColumnLayout,
        work: Callable[[EmbeddingSet, list[Tensor]], Tensor | None],
        combine: Combine = torch.add,
        extras: Sequence[Tensor] = (),
    ) -> Tensor | None:
        """Call ``work`` for the columns of all processes; see
        :meth:`~mmcl.losses.blockwise.exchange.LocalExchange.map_shards`.

        Args:
            columns: of this process.
            layout: of these columns, ``keys`` or ``negatives``.
            work: takes columns, and the entries of ``extras`` for them.
            combine: reduces the results of two processes for the same columns.
            extras: tensors with one entry for each column.
        """
        if columns.owner is not None:  # row numbers of the global batch
            offset = self.exchange.row_offset
            owner = torch.where(columns.owner < 0, columns.owner, columns.owner + offset)
            columns = columns._replace(owner=owner)
        present = [field for field, tensor in zip(EmbeddingSet._fields, columns, strict=True) if tensor is not None]

        def unpack(tensors: list[Tensor]) -> Tensor | None:
            shard = EmbeddingSet(**dict(zip(present, tensors, strict=False)))
            return work(shard, tensors[len(present) :])

        tensors = [*(getattr(columns, field) for field in present), *extras]
        return self.exchange.map_shards(tensors, layout.counts, unpack, combine)


def make_plan(batch: Candidates, blockwise: Blockwise, precision: Precision) -> BlockPlan | None:
    """The plan of a batch; None if one process has all of it and holds the matrix in memory.

    Raises:
        ValueError: ``blockwise`` is not what it can be, the processes pass different arguments, or none of them has a
            row.
    """
    tile = blockwise.tile
    if tile not in ("auto", None) and not (isinstance(tile, int) and tile is not True and tile > 0):
        raise ValueError(f"tile must be a number from 1 up, 'auto' or None, not {tile!r}")
    rows, columns = batch.queries.vectors, (batch.keys, batch.negatives)
    counts = [0 if part is None else len(part.vectors) for part in columns]
    requires_grad = [part is not None and part.vectors.requires_grad for part in columns]
    sizes = [*counts, *requires_grad, *_widths(batch)]
    exchange = make_exchange(blockwise.across, len(rows), rows.device, sizes)
    if any(peer[4:] != exchange.peer_sizes[0][4:] for peer in exchange.peer_sizes):
        raise ValueError("all processes must give the same arguments, of the same widths: (0, D) where there are none")
    if exchange.global_rows == 0:
        raise ValueError("the batch has no rows")
    small = len(rows) * sum(counts) <= DENSE**2
    if type(exchange) is LocalExchange and (tile is None or (tile == "auto" and small)):
        return None
    keys, negatives = (
        ColumnLayout([peer[at] for peer in exchange.peer_sizes], any(peer[2 + at] for peer in exchange.peer_sizes))
        for at in range(2)
    )
    size = TILE if tile == "auto" else sys.maxsize if tile is None else tile
    return BlockPlan(batch.similarity, size, exchange, keys, negatives, precision)


def _widths(batch: Candidates) -> list[int]:
    """Number of elements of a row of each tensor of queries, keys and negatives; -1 if absent."""
    parts = (part or (None,) * len(EmbeddingSet._fields) for part in (batch.queries, batch.keys, batch.negatives))
    return [-1 if tensor is None else math.prod(tensor.shape[1:]) for part in parts for tensor in part]


def precision_of(*embeddings: Tensor | None) -> Precision:
    """The precision of products of embeddings: what torch's setting allows, and bfloat16 where all are bfloat16 and the
    hardware multiplies it."""
    given = [tensor for tensor in embeddings if tensor is not None]
    types, device = {tensor.dtype for tensor in given}, given[0].device
    if types == {torch.bfloat16} and multiplies_bfloat16(device):
        return "bfloat16"
    return "full" if torch.float64 in types else allowed_precision(device)


def as_number(value: float | Tensor, like: Tensor) -> Tensor:
    """A tensor without dimensions, of the type and on the device of ``like``; gradient flows to ``value``."""
    if torch.is_tensor(value):
        return value.reshape(()).to(like)
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def as_scale(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1 / temperature, computed in the type of ``like``, since the temperature's own may be too coarse."""
    return 1 / as_number(temperature, like)

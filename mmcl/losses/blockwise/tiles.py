"""A matrix of logits gone through tile by tile, forward and backward, in O(N·D) memory.

The forward pass keeps a few numbers for each row and column; the backward pass computes each tile again, turns it in
place into the gradient by its logits, and multiplies that with the tile's columns and rows. That is four matrix
products of 2·B²·D operations, one more than the dense loss here takes, and two fewer than one that computes its logits
for either direction, as OpenCLIP's does (the idea is FlashAttention's, Dao et al. 2022, arXiv:2205.14135; for InfoNCE
see Cheng et al. 2024, arXiv:2410.17243).

What a row says of its own partner is no part of it, only the *other* columns are. A loss joins the two in the end,
which keeps 1 - p exact where p is near 1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcl.losses.blockwise.plan import Blockwise
from mmcl.losses.candidates import Candidates, EmbeddingSet
from mmcl.losses.similarity import Similarity, similarities
from mmcl.runtime.device import multiplies_bfloat16, widest
from mmcl.runtime.ring import Alone, Combine, exchange

TILE = 1024  # rows and columns; in float32 the tile and what it is multiplied with stay in the last cache of a CPU
DENSE = 1024  # a matrix of no more than this, squared, is held at once unless tiles are asked for


class Held(NamedTuple):
    """What the processes hold of a batch's keys, or of its further negatives.

    Attributes:
        counts: how many each process has.
        learn: whether gradient flows to those of any process, as to a queue of past keys it does not; if so all have to
            find what each owes the others.
    """

    counts: list[int]
    learn: bool


@dataclass(frozen=True)
class Plan:
    """How the matrix is gone through.

    Attributes:
        similarity: what is in it.
        tile: rows and columns of a tile.
        exchange: where the columns are.
        keys: of all processes.
        negatives: of all processes.
        half: multiply in bfloat16, and add up in float32.
    """

    similarity: Similarity
    tile: int
    exchange: Alone
    keys: Held
    negatives: Held
    half: bool = False

    def tour(
        self,
        columns: EmbeddingSet,
        held: Held,
        work: Callable[[EmbeddingSet, list[Tensor]], Tensor | None],
        combine: Combine = torch.add,
        besides: Sequence[Tensor] = (),
    ) -> Tensor | None:
        """Do ``work`` for the columns of all processes, as :meth:`~mmcl.runtime.ring.Alone.tour` has it.

        Args:
            columns: of this process.
            held: ``keys`` or ``negatives``, whichever these are.
            work: called with columns, and with what ``besides`` holds for them.
            combine: how two processes' findings become one.
            besides: tensors with one entry for each column.
        """
        if columns.owner is not None:  # the rows' numbers in the whole batch
            numbers = torch.where(columns.owner < 0, columns.owner, columns.owner + self.exchange.first)
            columns = columns._replace(owner=numbers)
        present = [field for field, tensor in zip(EmbeddingSet._fields, columns, strict=True) if tensor is not None]

        def unpack(tensors: list[Tensor]) -> Tensor | None:
            return work(EmbeddingSet(**dict(zip(present, tensors, strict=False))), tensors[len(present) :])

        tensors = [*(getattr(columns, field) for field in present), *besides]
        return self.exchange.tour(tensors, held.counts, unpack, combine)


def make_plan(batch: Candidates, blockwise: Blockwise, *, half: bool) -> Plan | None:
    """How to go about a batch's matrix; None if it is to be held at once, by one process that has all of it.

    Raises:
        ValueError: ``tile`` or ``across`` is not what it can be, the processes disagree in what arguments there are, or
            none of them has a row.
    """
    tile = blockwise.tile
    if tile not in ("auto", None) and not (isinstance(tile, int) and tile is not True and tile > 0):
        raise ValueError(f"tile must be a number from 1 up, 'auto' or None, not {tile!r}")
    queries, keys, negatives = batch[:3]
    counts = [0 if side is None else len(side.vectors) for side in (keys, negatives)]
    learn = [side is not None and side.vectors.requires_grad for side in (keys, negatives)]
    meeting = exchange(
        blockwise.across, len(queries.vectors), queries.vectors.device, [*counts, *learn, *_widths(batch)]
    )
    if any(told[4:] != meeting.told[0][4:] for told in meeting.told):
        raise ValueError("all processes must give the same arguments, of the same widths: (0, D) where there are none")
    if meeting.rows == 0:
        raise ValueError("the batch has no rows")
    few = len(queries.vectors) * sum(counts) <= DENSE**2
    if type(meeting) is Alone and (tile is None or (tile == "auto" and few)):
        return None
    size = TILE if tile == "auto" else sys.maxsize if tile is None else tile
    of_keys, of_negatives = (
        Held([told[at] for told in meeting.told], any(told[2 + at] for told in meeting.told)) for at in range(2)
    )
    return Plan(batch.similarity, size, meeting, of_keys, of_negatives, half)


def _widths(batch: Candidates) -> list[int]:
    """What each thing that may be known of queries, keys and negatives has behind its first dimension; -1 if absent."""
    sides = (side or (None,) * len(EmbeddingSet._fields) for side in (batch.queries, batch.keys, batch.negatives))
    return [-1 if tensor is None else math.prod(tensor.shape[1:]) for side in sides for tensor in side]


def as_number(value: float | Tensor, like: Tensor) -> Tensor:
    """A tensor without dimensions, of the type and on the device of another; gradient flows to ``value``."""
    if torch.is_tensor(value):
        return value.reshape(()).to(like)
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def as_scale(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1 / temperature, as :func:`as_number`."""
    # In the type of ``like``, for 1 / temperature may round to little in its own.
    return 1 / as_number(temperature, like)


def by_hand(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A ``backward`` that is no graph of its own: to differentiate it again raises ``RuntimeError``, rather than give
    something wrong. Autocast, in which a user may have called it, does not reach into it."""

    @wraps(backward)
    def once(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad(), torch.autocast(grads[0].device.type, enabled=False):
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        # Whatever a user differentiates by, the way there leads through one of these.
        given = [gradient for gradient in found if gradient is not None]
        ends = iter(_End.apply(len(given), *given, *grads, *ctx.saved_tensors))
        return tuple(None if gradient is None else next(ends) for gradient in found)

    return once


class _End(torch.autograd.Function):
    """Hands on the first so many tensors, which come of the others; there is no way back."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("a loss in tiles has no second derivative; Blockwise(tile=None) has one")


class Sweep:
    """Rows of this process against columns that come by; adds up the gradients of rows and scale.

    Attributes:
        d_scale: by the scale.
    """

    def __init__(self, rows: EmbeddingSet, scale: Tensor, plan: Plan) -> None:
        self.rows, self.scale, self.plan = rows, scale, plan
        self.d_scale = torch.zeros((), dtype=widest(scale.device), device=scale.device)
        self._d_rows = torch.zeros(())  # once there is a gradient, (N, D), which lacks the factor scale
        self._rooms: dict[str, Tensor] = {}

    def room(self, name: str, height: int, width: int) -> Tensor:
        """An uninitialised matrix, in the memory that the last one of the name had."""
        if name not in self._rooms or self._rooms[name].numel() < height * width:
            self._rooms[name] = self.rows.vectors.new_empty(height * width)
        return self._rooms[name][: height * width].view(height, width)

    def tiles(self, columns: EmbeddingSet) -> Iterator[tuple[slice, slice, Tensor]]:
        """Places of rows and columns, and their logits, which the next tile overwrites."""
        for r, c, _, z in self._tiles(columns):
            yield r, c, z

    def _tiles(self, columns: EmbeddingSet) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        for r in slices(len(self.rows.vectors), self.plan.tile):
            scaled = self.rows.vectors[r] * self.scale
            for c in slices(len(columns.vectors), self.plan.tile):
                z = self.room("logits", len(scaled), c.stop - c.start)
                if self.plan.similarity == "euclidean":
                    torch.mul(similarities(self.rows.vectors[r], columns.vectors[c], "euclidean"), self.scale, out=z)
                else:
                    multiply(scaled, columns.vectors[c].T, z, half=self.plan.half)
                yield r, c, scaled, z

    def own(self, r: slice, c: slice, columns: EmbeddingSet) -> tuple[Tensor, Tensor, Tensor] | None:
        """For each column of a tile: whether the row that it belongs to is there; that row, or any; and the column."""
        if columns.owner is None:
            return None
        place = columns.owner[c] - (self.plan.exchange.first + r.start)
        height = r.stop - r.start
        here = (place >= 0) & (place < height)
        return here, place.clamp(0, height - 1), torch.arange(len(place), device=place.device)

    def weigh_own(self, r: slice, c: slice, columns: EmbeddingSet, terms: Tensor, weight: float) -> None:
        """Multiply, in a tile, what columns say to the row that they belong to."""
        found = self.own(r, c, columns)
        if found is not None:
            here, row, column = found
            values = terms[row, column]
            terms[row, column] = torch.where(here, values * weight, values)

    def gradient(
        self, columns: EmbeddingSet, derivative: Callable[[slice, slice, Tensor], Tensor], *, theirs: bool = True
    ) -> Tensor | None:
        """(M, D) gradient of the columns; that of rows and scale is kept for :meth:`finish`.

        Args:
            columns: as they came by in the forward pass.
            derivative: makes of a tile of logits the derivative by them, in their place.
            theirs: whether the columns' gradient is of use; None is returned for what is not.
        """
        d_rows = self.d_rows()
        d_columns = torch.zeros_like(columns.vectors) if theirs else None
        for r, c, scaled, z in self._tiles(columns):
            weights, d_ours = derivative(r, c, z), d_rows[r]
            if self.plan.similarity == "euclidean":
                a, b = (side.vectors[at].detach().requires_grad_() for side, at in ((self.rows, r), (columns, c)))
                with torch.enable_grad():
                    values = similarities(a, b, "euclidean")
                d_a, d_b = torch.autograd.grad(values, (a, b), weights)
                d_ours += d_a
                self.d_scale += (weights * values.detach()).sum(dtype=self.d_scale.dtype)
                if d_columns is not None:
                    d_columns[c] += d_b * self.scale
            else:
                multiply(weights, columns.vectors[c], d_ours, half=self.plan.half, add=True)
                if d_columns is not None:
                    multiply(weights.T, scaled, d_columns[c], half=self.plan.half, add=True)
        return d_columns

    def d_rows(self) -> Tensor:
        """(N, D) to which the gradient of the rows is added, short of the factor scale."""
        if self._d_rows.ndim == 0:
            self._d_rows = torch.zeros_like(self.rows.vectors)
        return self._d_rows

    def finish(self) -> tuple[Tensor, Tensor]:
        """The gradients of rows, (N, D), and of the scale."""
        d_rows = self.d_rows()
        if self.plan.similarity != "euclidean":
            # The sum over a row's columns of derivative times similarity is that of its vector times its gradient.
            for r in slices(len(d_rows), self.plan.tile):
                self.d_scale += (self.rows.vectors[r] * d_rows[r]).sum(dtype=self.d_scale.dtype)
        return d_rows.mul_(self.scale), self.d_scale.to(self.scale.dtype)


def factors(lse: Tensor, by_lse: Tensor, shift: float) -> Tensor:
    """(N,) factors that turn exp(logit - shift) into the derivative by a row's logits.

    Args:
        lse: (N,) log-sum-exps of the rows.
        by_lse: (N,) derivatives by them.
        shift: what was subtracted from all logits.
    """
    # By way of logarithms: where all others are far below the partner, one factor is beyond bounds, the other 0.
    return by_lse.sign() * (by_lse.abs().log() + (shift - lse)).exp()


def slices(count: int, size: int) -> Iterator[slice]:
    """0 … count in pieces of ``size`` or less."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def multiply(a: Tensor, b: Tensor, out: Tensor, *, half: bool, add: bool = False) -> None:
    """Put a @ b into ``out``, or add it.

    ``half`` rounds a and b to bfloat16, whose products are exact in float32, and adds up in that. On CPUs torch has no
    product of bfloat16 tensors that gives float32 (and a logit of 14 rounded to 8 bits is off by up to 0.03); but
    oneDNN can be allowed to round float32 tensors on their way into the unit that multiplies.
    """
    if half and a.is_cuda:
        a, b = a.bfloat16(), b.bfloat16()
        if add:
            torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
        else:
            torch.mm(a, b, out_dtype=torch.float32, out=out)
        return
    with _rounded_to_bfloat16() if half else nullcontext():
        if add:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)


@contextmanager
def _rounded_to_bfloat16() -> Iterator[None]:
    """Within, oneDNN rounds float32 tensors; a setting of the whole process, so it is left alone by all others."""
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def in_bfloat16(*embeddings: Tensor | None) -> bool:
    """Whether the products of embeddings may be bfloat16's: they came in it, and the hardware multiplies it."""
    given = [tensor for tensor in embeddings if tensor is not None]
    return all(tensor.dtype == torch.bfloat16 for tensor in given) and multiplies_bfloat16(given[0].device)

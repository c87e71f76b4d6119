"""Rows on their way from a source to a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mmcl.data.batches.inputs import take_rows

Inputs: TypeAlias = dict[str, Tensor]
SIZES = "sizes"  # of images of different sizes, among their inputs
MINED = "mined"  # of ``Batch.extra``, the name of mined hard negatives: as many for each row, row after row


@dataclass
class Batch:
    """N rows on their way through a method.

    Attributes:
        inputs: column to the named inputs of an embedder: ``pixels`` uint8 (N, S, S, 3); those of texts (see
            :mod:`mmcl.data.batches.inputs`); or ``features`` (N, F) of a frozen tower. What no embedder takes:
            ``values`` (N,) float32 of numbers, ``labels`` (N,) int64, equal where the labels are.
        ids: (N, K) int64, the identities of the items, one of each column that an embedder takes. What counts as the
            same thing is up to the method: for pairs, rows that agree in any of them.
        seeds: (N,) int64, one a row and epoch: from them alone random changes are drawn.
        rows: (N,) int64 positions in the source; numbers in the order of reading, for a stream.
        extra: name to the inputs of extra items, partners of none of the rows, where a method asks for them.
        extra_ids: name to their identities, (M, K) int64 as in ``ids``.
        draws: column to the inputs of its random draws after the first, where these are made on the host.
        references: name of another model to the features that it has of the same items, unaugmented, by column or
            name of extra items.
        names: for a stream, what each row is called in messages: its shard and key.
        position: for a stream, where it stands after this batch, in values that JSON can hold.
        problems: for a stream, the samples that were skipped on the way to this batch, each with id, role and reason.
    """

    inputs: dict[str, Inputs]
    ids: Tensor
    seeds: Tensor
    rows: Tensor
    extra: dict[str, Inputs] = field(default_factory=dict)
    extra_ids: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, list[Inputs]] = field(default_factory=dict)
    references: dict[str, dict[str, Inputs]] = field(default_factory=dict)
    names: list[str] | None = None
    position: Any = None
    problems: list[dict[str, str]] = field(default_factory=list)

    @property
    def longest_sequence(self) -> int:
        """What a tower attends to at most: tokens of the longest text, or patches of the largest image, of 14 pixels
        and without crops; 0 without either."""
        return max((_length(inputs) for inputs in (*self.inputs.values(), *self.extra.values())), default=0)

    def drawn(self, column: str, draw: int) -> Inputs:
        """The inputs of a random draw of a column, from 0; where it is not changed on the host all are the same."""
        return self.draws[column][draw - 1] if draw and column in self.draws else self.inputs[column]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``, but for ``rows``, and for the ``seeds`` and ``sizes`` of images, from which
        augmentation draws its parameters on the host: it would wait for the device to have them back."""
        moved = self._mapped(lambda tensor: tensor.to(device, non_blocking=True), skip=SIZES)
        moved.seeds = self.seeds
        return moved

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory, from which a GPU copies while it computes; but for what is there already."""
        return self._mapped(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def split(self, sizes: Sequence[int]) -> list[Batch]:
        """Consecutive parts of so many rows each, over which extra items are spread in proportion to the rows.

        Texts end with the longest of their part. A part to which no extra item falls lacks their name, since models
        do not embed nothing; the last part has one if any has.
        """
        if sum(sizes) != len(self.ids):
            raise ValueError(f"{sizes} are not the sizes of parts of {len(self.ids)} rows")
        return [self._part(slice(stop - size, stop)) for size, stop in zip(sizes, accumulate(sizes), strict=True)]

    def _part(self, rows: slice) -> Batch:
        def share(count: int) -> slice:
            return slice(rows.start * count // len(self.ids), rows.stop * count // len(self.ids))

        def take(name: str, inputs: Inputs) -> Inputs:
            return take_rows(inputs, share(_count(inputs)) if name in self.extra else rows)

        extra = {name: take(name, inputs) for name, inputs in self.extra.items()}
        there = {name for name, inputs in extra.items() if _count(inputs)}
        return Batch(
            {column: take_rows(inputs, rows) for column, inputs in self.inputs.items()},
            self.ids[rows],
            self.seeds[rows],
            self.rows[rows],
            {name: extra[name] for name in extra if name in there},
            {name: ids[share(len(ids))] for name, ids in self.extra_ids.items() if name in there},
            {column: [take_rows(inputs, rows) for inputs in draws] for column, draws in self.draws.items()},
            {
                model: {name: take(name, of) for name, of in named.items() if name not in extra or name in there}
                for model, named in self.references.items()
            },
            None if self.names is None else self.names[rows],
        )

    def _mapped(self, change: Callable[[Tensor], Tensor], skip: str | None = None) -> Batch:
        fields = ("inputs", "ids", "seeds", "extra", "extra_ids", "draws", "references")
        return replace(self, **{name: _mapped(getattr(self, name), change, skip) for name in fields})


def _mapped(value: Any, change: Callable[[Tensor], Tensor], skip: str | None) -> Any:
    """Every tensor changed in nested dicts and lists, but those called ``skip``."""
    if isinstance(value, dict):
        return {name: below if name == skip else _mapped(below, change, skip) for name, below in value.items()}
    return [_mapped(below, change, skip) for below in value] if isinstance(value, list) else change(value)


def _length(inputs: Inputs) -> int:
    if "input_ids" in inputs:
        return inputs["input_ids"].shape[1]
    if "patches" in inputs:
        return inputs["patches"].shape[1]
    if "pixels" in inputs:
        side = inputs["pixels"].shape[1]
    else:
        side = int(inputs[SIZES].numpy().max()) if SIZES in inputs else 0  # of the host: nothing waits for a device
    return (side // 14) ** 2


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))

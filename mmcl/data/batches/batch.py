"""Rows on their way from a source to a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mmcl.data.batches.inputs import take_rows

MINED = "mined"  # of ``Batch.extra``, the name of mined hard negatives: as many for each row, row after row


@dataclass
class Batch:
    """N rows on their way through a method.

    Attributes:
        inputs: role (``image``, ``text``, …) to the named inputs of an embedder: ``pixels`` uint8 (N, S, S, 3);
            those of texts (see :mod:`mmcl.data.batches.inputs`); or ``features`` (N, F) of a frozen tower. Numbers,
            which no embedder takes, are ``values`` (N,) float32. Under ``teacher_ROLE`` and ``guide_ROLE`` the features
            that these have of the same items, unaugmented.
        ids: (N, K) int64, the identities of the items, a column for each role that is no number. What counts as the
            same thing is up to the method: for pairs, rows that agree in any column.
        seeds: (N,) int64, one a row and epoch: from them alone a method draws its random numbers for augmentation.
        rows: (N,) int64 positions in the source; numbers in the order of reading, for a stream.
        extra: role to the named inputs of further items, no partners of any row, where a method asks for them.
        extra_ids: role to their identities, (M, K) int64 as in ``ids``.
        names: for a stream, what each row is called in messages: its shard and key.
        position: for a stream, where it stands after this batch, in values that JSON can hold.
        problems: for a stream, the samples that were skipped on the way to this batch, each with id, role and reason.
    """

    inputs: dict[str, dict[str, Tensor]]
    ids: Tensor
    seeds: Tensor
    rows: Tensor
    extra: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    extra_ids: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] | None = None
    position: Any = None
    problems: list[dict[str, str]] = field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return Batch(
            {role: moved(tensors) for role, tensors in self.inputs.items()},
            self.ids.to(device),
            self.seeds.to(device),
            self.rows,
            {role: moved(tensors) for role, tensors in self.extra.items()},
            moved(self.extra_ids),
            self.names,
            self.position,
            self.problems,
        )

    def split(self, sizes: Sequence[int]) -> list[Batch]:
        """Consecutive parts of so many rows each, over which further items are spread in proportion to the rows.

        Texts end with the longest of their part. A part to which no further item falls lacks their role, since models
        do not embed nothing; the last part has one if any has.
        """
        if sum(sizes) != len(self.ids):
            raise ValueError(f"{sizes} are not the sizes of parts of {len(self.ids)} rows")

        def share(count: int, rows: slice) -> slice:
            return slice(rows.start * count // len(self.ids), rows.stop * count // len(self.ids))

        parts = []
        for size, stop in zip(sizes, accumulate(sizes), strict=True):
            rows = slice(stop - size, stop)
            further = {role: take_rows(named, share(_count(named), rows)) for role, named in self.extra.items()}
            ids = {role: ids[share(len(ids), rows)] for role, ids in self.extra_ids.items()}
            parts.append(
                Batch(
                    {role: take_rows(named, rows) for role, named in self.inputs.items()},
                    self.ids[rows],
                    self.seeds[rows],
                    self.rows[rows],
                    {role: named for role, named in further.items() if _count(named)},
                    {role: some for role, some in ids.items() if len(some)},
                    None if self.names is None else self.names[rows],
                )
            )
        return parts


def _count(tensors: dict[str, Tensor]) -> int:
    return len(next(iter(tensors.values())))

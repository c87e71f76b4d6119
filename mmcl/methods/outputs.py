"""What a batch becomes on its way to the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from mmcl.runtime import distributed


@dataclass(frozen=True)
class Rows:
    """What is known of N rows beside their embeddings, without gradient.

    Attributes:
        ids: (N, K) int64 identities, a column for each item of a row.
        extra_ids: name of extra items to theirs, (M, K).
        values: column of numbers to (N,) float32.
        labels: column of labels to (N,) int64, equal where the labels are, which mean nothing else.
        references: name of another model to its embeddings of the same items, (N, F) by column.
    """

    ids: Tensor
    extra_ids: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    references: dict[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """What the loss of N rows is computed from.

    Attributes:
        embeddings: name to (N·count, D) embeddings of a view, or (M, D) of extra items; gradient flows to them.
        rows: beside them.
        keys: name to embeddings by a momentum copy, without gradient.
        batches: of several batches in one (gradient accumulation), those of each; see :meth:`each`.
    """

    embeddings: dict[str, Tensor]
    rows: Rows
    keys: dict[str, Tensor] = field(default_factory=dict)
    batches: tuple[Outputs, ...] = ()

    @classmethod
    def cat(cls, parts: Sequence[Outputs]) -> Outputs:
        """The rows of consecutive parts as one. Extra items may lack in some parts, but not in the last."""
        flat = [dict(_tensors(part)) for part in parts]
        joined = {path: torch.cat([each[path] for each in flat if path in each]) for path in flat[-1]}
        return _filled(replace(parts[-1], batches=()), joined)

    @classmethod
    def of_batches(cls, batches: Sequence[Outputs]) -> Outputs:
        """The rows of several batches, of which a queue takes in each by itself."""
        return batches[0] if len(batches) == 1 else replace(cls.cat(batches), batches=tuple(batches))

    def each(self) -> tuple[Outputs, ...]:
        """The outputs of each batch of a step."""
        return self.batches or (self,)

    def gathered(self) -> Self:
        """The rows of all processes, in the order of ranks; gradient flows to this process's embeddings."""
        return _filled(self, distributed.gather_views(dict(_tensors(self))))

    def detached(self) -> Self:
        """The same without gradient."""
        return _filled(self, {path: tensor.detach() for path, tensor in _tensors(self)})


def _tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and dataclasses, by its path."""
    if isinstance(value, Tensor):
        yield path, value
    elif not isinstance(value, tuple):
        for name, below in _items(value):
            yield from _tensors(below, f"{path}/{name}")


def _filled(value: Any, tensors: Mapping[str, Tensor], path: str = "") -> Any:
    """The same nest with other tensors at the same paths."""
    if isinstance(value, Tensor):
        return tensors[path]
    if isinstance(value, tuple):
        return value
    below = {name: _filled(inner, tensors, f"{path}/{name}") for name, inner in _items(value)}
    return below if isinstance(value, dict) else replace(value, **below)


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else [(f.name, getattr(value, f.name)) for f in fields(value)]

"""What an index of vectors is, whatever library searches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mmcl.losses.logits.similarity import Similarity


class VectorIndex(Protocol):
    """Vectors that answer which of them are most similar to a query.

    Attributes:
        dim: components of a vector.
        similarity: what the scores are; the higher is the more similar, of ``euclidean`` the negative distance.
        model: name or folder of the encoder whose vectors these are, if known.
        encoder: its fingerprint, see :class:`mmcl.encoding.corpora.stored.Fingerprint`, if known.
    """

    dim: int
    similarity: Similarity
    model: str | None
    encoder: dict[str, str] | None

    def __len__(self) -> int: ...

    def search(self, queries: Any, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Ids (Q, k) and scores (Q, k) float32 of the k most similar vectors for each of (Q, D) queries, best first.
        Fewer come back where the index holds fewer; where it reaches fewer, the places left have score -inf."""

    def labels_of(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> list[str | None]:
        """What to show for these ids; None of one without a label."""

    def info(self) -> dict[str, Any]:
        """What the index holds and how it was built, in values that JSON can hold."""

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder, completely or not at all."""


class VectorShards(Protocol):
    """Vectors too many for memory, as `mmcl.encoding.open_vectors` gives them."""

    @property
    def dim(self) -> int: ...
    @property
    def model(self) -> str | None: ...
    def __len__(self) -> int: ...
    def table(self) -> pa.Table:
        """The columns ``id`` and, perhaps, ``label``."""

    def iter_shards(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Ids and (n, D) array of each shard, in order."""

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The (n, D) float32 vectors at these positions."""

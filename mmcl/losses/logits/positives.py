"""What a caller passes where a query has any number of positives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Positives:
    """Groups, such as labels: the positives of a query are all keys of its group, of which there may be none.

    Attributes:
        query: (N,) integers, the groups of the queries.
        key: (M,) integers, those of the keys: of 2 images and 4 texts, [0, 1] and [0, 0, 1, 1] give each image two
            texts. None: those of the queries, where keys are as many.
        compete: whether the positives of a query are in each other's denominators, as in SupCon, or not, as in NT-Xent
            over all positive pairs.
    """

    query: Tensor
    key: Tensor | None = None
    compete: bool = True

    def of(self, query: Tensor, key: Tensor | None, *, empty: bool = False) -> tuple[Tensor, Tensor]:
        """The groups of queries and of keys, which are the queries if None; ``empty`` allows that there are none.

        Raises:
            ValueError: shapes do not fit.
        """
        keys = query if key is None else key
        if query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1] or not (empty or len(query)):
            shapes = f"{tuple(query.shape)} and {tuple(keys.shape)}"
            raise ValueError(f"query and key must be (N, D) with N ≥ 1 and (M, D), not {shapes}")
        groups = self.query, self.query if self.key is None else self.key
        for name, vectors, group in zip(("query", "key"), (query, keys), groups, strict=True):
            if group.shape != (len(vectors),):
                raise ValueError(f"positives.{name} must be ({len(vectors)},), not {tuple(group.shape)}")
        return groups

"""What a caller passes besides pairs: more negatives, and a guide that finds false ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_pairs


@dataclass(frozen=True)
class Negatives:
    """Keys that are no query's positive, such as hard negatives or a queue of earlier keys.

    Attributes:
        vectors: (M, D) embeddings. They are negatives of queries only, not of keys.
        ids: (M,) or (M, C) integers, with as many columns as the ids of the keys: duplicates of a query leave its
            denominator. If absent, no negative does.
        owner: (M,) int64, the row of the query whose hard negative it is, or -1 for none; with several processes, a row
            of the own process.
        weight: α > 0, how much a hard negative counts in the denominator of its owner; in that of any other row it
            counts 1. SimCSE's code takes ln α.
    """

    vectors: Tensor
    ids: Tensor | None = None
    owner: Tensor | None = None
    weight: float = 1.0

    def check(self, queries: Tensor, ids: Tensor | None) -> None:
        """Raise ``ValueError`` unless these go with (N, D) ``queries`` whose identities are ``ids``."""
        count, dim = len(queries), queries.shape[1]
        if self.vectors.ndim != 2 or self.vectors.shape[1] != dim:
            raise ValueError(f"negatives must be (M, {dim}), not {tuple(self.vectors.shape)}")
        if self.ids is not None:
            if ids is None or len(self.ids) != len(self.vectors):
                raise ValueError("negatives.ids go with ids, and there is one for each of the negatives")
            if self.ids.shape[1:] != ids.shape[1:]:
                raise ValueError("negatives.ids must have as many columns as ids")
        if self.owner is not None:
            if self.owner.shape != (len(self.vectors),):
                raise ValueError("negatives.owner has one row number for each of the negatives")
            if self.owner.dtype != torch.int64:
                raise ValueError(f"negatives.owner must be int64, not {self.owner.dtype}")
            if not bool(((self.owner >= -1) & (self.owner < count)).all()):
                raise ValueError(f"negatives.owner must hold numbers of the {count} rows, or -1")
        if not 0.0 < self.weight < math.inf:
            raise ValueError(f"negatives.weight must be more than 0 and finite, not {self.weight}")


@dataclass(frozen=True)
class Guide:
    """Embeddings of the same things by another model, to find false negatives (GISTEmbed, Solatorio 2024,
    arXiv:2402.16829).

    A key is no negative of a query if the guide's cosine of the two exceeds its cosine of the query and the query's
    positive less the margin. GISTEmbed itself compares queries with queries and keys with keys as well.

    Attributes:
        query: (N, E) embeddings of the queries by the guide. No gradient flows to it.
        key: (N, E) embeddings of the keys.
        negatives: (M, E) embeddings of the :class:`Negatives`; if absent, all of these are negatives.
        margin: above 0 more keys are left out, below 0 fewer.
    """

    query: Tensor
    key: Tensor
    negatives: Tensor | None = None
    margin: float = 0.0

    def check(self, count: int, negatives: Negatives | None) -> None:
        """Raise ``ValueError`` unless the guide goes with ``count`` pairs and these negatives."""
        check_pairs(self.query, self.key, names=("guide.query", "guide.key"), empty=True)
        if len(self.query) != count:
            raise ValueError(f"the guide embeds {len(self.query)} rows of {count}")
        if self.negatives is not None and (negatives is None or len(self.negatives) != len(negatives.vectors)):
            raise ValueError("guide.negatives go with negatives, and there is one for each of them")

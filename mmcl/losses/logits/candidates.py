"""The candidates that a query is compared with: their logits, and which of them are no negatives.

Every rule depends on one row and one column alone (their ids, their embeddings by a guide, whose hard negative a column
is), so that any tile of the matrix of logits can be computed by itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmcl.losses.logits.checks import check_ids, check_pairs, check_temperature, scalar
from mmcl.losses.logits.negatives import Guide, Negatives
from mmcl.losses.logits.positives import Positives
from mmcl.losses.logits.similarity import Similarity, prepare, similarities

Ids = Tensor | tuple[Tensor, Tensor]
"""Identities of rows; or those of queries and those of keys, where the two differ."""


class EmbeddingSet(NamedTuple):
    """N embeddings, as rows or as columns of the matrix of logits.

    Attributes:
        vectors: (N, D) embeddings, prepared for the similarity.
        ids: (N,) or (N, C) identities.
        guide: (N, E) unit vectors of the guide.
        threshold: (N,) cosine of the guide above which another embedding is no negative of this one.
        owner: (N,) of a column: the row whose positive or hard negative it is, or that it is itself; -1 for none.
        group: (N,) where positives are those of the same group, rather than one a row.
    """

    vectors: Tensor
    ids: Tensor | None = None
    guide: Tensor | None = None
    threshold: Tensor | None = None
    owner: Tensor | None = None
    group: Tensor | None = None

    def at(self, part: slice) -> EmbeddingSet:
        """Some of the embeddings."""
        return EmbeddingSet._make(None if tensor is None else tensor[part] for tensor in self)


class Candidates(NamedTuple):
    """A batch whose arguments are checked and prepared.

    Attributes:
        queries: N of them, the rows.
        keys: N of them, of which key i is the positive of query i; any number of them where there are groups.
        negatives: more columns.
        weight: how much a negative counts in its owner's row.
        similarity: what the logits are made of.
    """

    queries: EmbeddingSet
    keys: EmbeddingSet
    negatives: EmbeddingSet | None
    weight: float
    similarity: Similarity


def candidates(
    query: Tensor,
    key: Tensor | None,
    *,
    ids: Ids | None = None,
    positives: Positives | None = None,
    negatives: Negatives | None = None,
    guide: Guide | None = None,
    similarity: Similarity = "cosine",
    empty: bool = False,
) -> Candidates:
    """The arguments of :func:`~mmcl.losses.info_nce` as a batch; ``empty`` allows that it has no rows.

    Raises:
        ValueError: shapes do not fit, or arguments that belong together are not given together.
    """
    query_ids, key_ids = ids if isinstance(ids, tuple) else (ids, ids)
    groups = (None, None) if positives is None else positives.of(query, key, empty=empty)
    if positives is None:
        if key is None:
            raise ValueError("without keys queries are compared with each other, and positives say which go together")
        check_pairs(query, key, query_ids, names=("query", "key"), empty=empty)
    elif query_ids is not None:
        check_ids(query_ids, len(query), "ids")
    if query_ids is not None and key_ids is not None:
        check_ids(key_ids, len(query if key is None else key), "ids of keys")
        if key_ids.shape[1:] != query_ids.shape[1:]:
            raise ValueError("ids of queries and of keys must have the same shape")
    if negatives is not None:
        negatives.check(query, query_ids)
    if guide is not None:
        if positives is not None:
            raise ValueError("a guide compares with one positive a row; leave it or positives out")
        guide.check(len(query), negatives)

    given = [query, *([] if key is None else [key]), *([] if negatives is None else [negatives.vectors])]
    vectors = iter(prepare(*given, similarity=similarity))
    queries = EmbeddingSet(next(vectors), query_ids, group=groups[0])
    # The positive of its row, or the row itself: neither is summed up with the others.
    own = torch.arange(len(query), device=query.device) if positives is None or key is None else None
    keys = EmbeddingSet(queries.vectors if key is None else next(vectors), key_ids, owner=own, group=groups[1])
    others = None
    if negatives is not None:
        others = EmbeddingSet(next(vectors), negatives.ids, owner=negatives.owner)
    if guide is not None:
        of_queries, of_keys = _unit(guide.query), _unit(guide.key)
        # The last term keeps what equals the positive, however the products of a tile are rounded.
        threshold = (of_queries * of_keys).sum(dim=1) - guide.margin + 8 * torch.finfo(of_queries.dtype).eps
        queries = queries._replace(guide=of_queries, threshold=threshold)
        keys = keys._replace(guide=of_keys, threshold=threshold)
        if others is not None and guide.negatives is not None:
            others = others._replace(guide=_unit(guide.negatives))
    return Candidates(queries, keys, others, 1.0 if negatives is None else negatives.weight, similarity)


def dense_logits(batch: Candidates, temperature: float | Tensor, *, symmetric: bool = True) -> list[Tensor]:
    """Logits from query to key and to negatives, (N, N + M), and if ``symmetric`` those from key to query, (N, N).
    Positives are on the diagonal, unless there are groups; what is no candidate is -∞.

    Raises:
        ValueError: ``temperature`` is not one number above 0.
    """
    check_temperature(temperature)
    temperature = scalar(temperature)
    queries, keys, negatives, weight, similarity = batch
    logits = similarities(queries.vectors, keys.vectors, similarity) / temperature  # (N, N)
    forward = _masked(logits, exclusion_mask(queries, keys), keys)
    if negatives is not None:
        wrong = similarities(queries.vectors, negatives.vectors, similarity) / temperature  # (N, M)
        if negatives.owner is not None and weight != 1.0:
            rows = torch.arange(len(logits), device=logits.device)
            wrong = torch.where(rows[:, None] == negatives.owner[None, :], wrong + math.log(weight), wrong)
        mask = exclusion_mask(queries, negatives)
        forward = torch.cat([forward, wrong if mask is None else wrong.masked_fill(mask, -torch.inf)], dim=1)
    if not symmetric:
        return [forward]
    return [forward, _masked(logits.T, exclusion_mask(keys, queries), keys)]


def exclusion_mask(rows: EmbeddingSet, columns: EmbeddingSet) -> Tensor | None:
    """(N, M) true where a column duplicates a row, or is a false negative by the guide, and is not of its group; None
    if no rule applies."""
    mask = None
    if rows.ids is not None and columns.ids is not None:
        mask = duplicate_mask(rows.ids, columns.ids)
        if rows.group is not None and columns.group is not None:
            mask &= rows.group[:, None] != columns.group[None, :]
    if rows.guide is not None and rows.threshold is not None and columns.guide is not None:
        close = rows.guide @ columns.guide.T > rows.threshold[:, None]
        mask = close if mask is None else mask | close
    return mask


def positive_mask(rows: EmbeddingSet, columns: EmbeddingSet, first: int = 0) -> Tensor:
    """(N, M) true where a column is of a row's group, and not the row itself; rows are numbered from ``first``."""
    assert rows.group is not None
    assert columns.group is not None
    mask = rows.group[:, None] == columns.group[None, :]
    if columns.owner is not None:
        numbers = torch.arange(first, first + len(mask), device=mask.device)
        mask &= columns.owner[None, :] != numbers[:, None]
    return mask


def duplicate_mask(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) true where row i of ``a`` and row j of ``b`` agree in any column."""
    a, b = (ids[:, None] if ids.ndim == 1 else ids for ids in (a, b))
    mask = torch.zeros(len(a), len(b), dtype=torch.bool, device=a.device)
    for of_a, of_b in zip(a.unbind(dim=1), b.unbind(dim=1), strict=True):  # (N, M, C) at once would take more memory
        mask |= of_a[:, None] == of_b[None, :]
    return mask


def _unit(vectors: Tensor) -> Tensor:
    return prepare(vectors.detach(), similarity="cosine")[0]


def _masked(logits: Tensor, mask: Tensor | None, keys: EmbeddingSet) -> Tensor:
    """-∞ where the mask is true. The diagonal stays if it holds positives, and leaves if it holds queries that are
    keys."""
    if keys.owner is None:
        return logits if mask is None else logits.masked_fill(mask, -torch.inf)
    if keys.group is not None:
        mask = torch.zeros_like(logits, dtype=torch.bool) if mask is None else mask
    if mask is None:
        return logits
    return logits.masked_fill(mask.fill_diagonal_(keys.group is not None), -torch.inf)

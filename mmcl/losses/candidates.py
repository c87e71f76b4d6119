"""Among what a row has to tell its partner: the logits of all candidates, and which of them are no negatives.

Every rule is a function of a row's things and a column's things (their identities, what a guide makes of them, whose
hard negative it is), so that any tile of the matrix can be computed from the rows and columns of it alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmcl.losses.pairs import Similarity, check_number, check_pairs, prepare, same, similarities


class Guide(NamedTuple):
    """What another model makes of the same things, to find negatives that are none (GISTEmbed, Solatorio 2024,
    arXiv:2402.16829).

    A candidate is no negative of a row if the guide's cosine of the two exceeds its cosine of the row and the row's
    partner less the margin.

    Attributes:
        query: (N, E) embeddings of the queries by the guide; no gradient flows to it.
        key: (N, E) embeddings of the keys.
        negatives: (M, E) embeddings of the further negatives; where absent these are not looked at.
        margin: above 0 more candidates are left out, below 0 fewer.
    """

    query: Tensor
    key: Tensor
    negatives: Tensor | None = None
    margin: float = 0.0


class _Side(NamedTuple):
    """Things of one kind: their embeddings, identities, and unit vectors of the guide."""

    vectors: Tensor
    ids: Tensor | None
    seen: Tensor | None


def candidate_logits(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor,
    *,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
    negative_owner: Tensor | None = None,
    own_weight: float = 1.0,
    guide: Guide | None = None,
    symmetric: bool = True,
    similarity: Similarity = "cosine",
) -> list[Tensor]:
    """The logits from query to key, (N, N + M), and if ``symmetric`` those from key to query, (N, N), too.

    A row's partner stands in the column of its number; -∞ is no candidate. The arguments are explained at
    :func:`~mmcl.losses.info_nce`.

    Raises:
        ValueError: shapes do not fit, arguments that belong together are not, or ``similarity`` is unknown.
    """
    _check(query, key, ids, key_ids, negatives, negative_ids, negative_owner, own_weight, guide)
    check_number(temperature, "temperature")
    given = [query, key] if negatives is None else [query, key, negatives]
    vectors = prepare(*given, similarity=similarity)
    queries = _Side(vectors[0], ids, _unit(guide.query if guide else None))
    keys = _Side(vectors[1], ids if key_ids is None else key_ids, _unit(guide.key if guide else None))
    margin = guide.margin if guide else 0.0

    logits = similarities(queries.vectors, keys.vectors, similarity) / temperature  # (N, N)
    forward = _without(logits, _no_negatives(queries, keys, keys, margin, partners=True))
    if negatives is not None:
        others = _Side(vectors[2], negative_ids, _unit(guide.negatives if guide else None))
        wrong = similarities(queries.vectors, others.vectors, similarity) / temperature  # (N, M)
        if negative_owner is not None and own_weight != 1.0:
            rows = torch.arange(len(query), device=query.device)
            wrong = torch.where(rows[:, None] == negative_owner[None, :], wrong + math.log(own_weight), wrong)
        forward = torch.cat([forward, _without(wrong, _no_negatives(queries, others, keys, margin))], dim=1)
    if not symmetric:
        return [forward]
    return [forward, _without(logits.T, _no_negatives(keys, queries, queries, margin, partners=True))]


def _no_negatives(
    rows: _Side, columns: _Side, partners_of: _Side, margin: float, partners: bool = False
) -> Tensor | None:
    """(N, M) true where a column is the same thing as a row, or too close to it in the guide's eyes.

    Args:
        rows: whose candidates the columns are.
        columns: the candidates.
        partners_of: what the rows' partners are, one for each row.
        margin: of the guide.
        partners: the columns are the partners, of which a row's own stays.
    """
    found = []
    if rows.ids is not None and columns.ids is not None:
        found.append(same(rows.ids, columns.ids))
    if rows.seen is not None and columns.seen is not None and partners_of.seen is not None:
        nearest = (rows.seen * partners_of.seen).sum(dim=1) - margin
        found.append(rows.seen @ columns.seen.T > nearest[:, None])
    if not found:
        return None
    excluded = found[0] if len(found) == 1 else found[0] | found[1]
    return excluded.fill_diagonal_(False) if partners else excluded


def _unit(seen: Tensor | None) -> Tensor | None:
    return None if seen is None else prepare(seen.detach(), similarity="cosine")[0]


def _without(logits: Tensor, excluded: Tensor | None) -> Tensor:
    return logits if excluded is None else logits.masked_fill(excluded, -torch.inf)


def _check(
    query: Tensor,
    key: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negatives: Tensor | None,
    negative_ids: Tensor | None,
    negative_owner: Tensor | None,
    own_weight: float,
    guide: Guide | None,
) -> None:
    check_pairs(query, key, ids, names=("query", "key"))
    if key_ids is not None and (ids is None or key_ids.shape != ids.shape):
        raise ValueError("key_ids go with ids, and are of the same shape")
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(f"negatives must be (M, {query.shape[1]}), not {tuple(negatives.shape)}")
    if negative_ids is not None and (ids is None or negatives is None or len(negative_ids) != len(negatives)):
        raise ValueError("negative_ids go with ids, and there is one for each of the negatives")
    if negative_owner is not None and (negatives is None or negative_owner.shape != (len(negatives),)):
        raise ValueError("negative_owner goes with negatives, and has one row number for each of them")
    if not own_weight > 0.0:
        raise ValueError(f"own_weight must be more than 0, not {own_weight}")
    if guide is not None:
        check_pairs(guide.query, guide.key, names=("guide.query", "guide.key"))
        if len(guide.query) != len(query):
            raise ValueError(f"the guide embeds {len(guide.query)} rows of {len(query)}")
        if guide.negatives is not None and (negatives is None or len(guide.negatives) != len(negatives)):
            raise ValueError("guide.negatives go with negatives, and there is one for each of them")

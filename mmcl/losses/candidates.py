"""Among what a row has to tell its partner: the logits of all candidates, and which of them are no negatives.

Every rule is a function of a row's things and a column's things (their identities, what a guide makes of them, whose
hard negative it is), so that any tile of the matrix can be computed from the rows and columns of it alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmcl.losses.pairs import Similarity, check_ids, check_pairs, check_temperature, prepare, same, scalar, similarities


class Guide(NamedTuple):
    """What another model makes of the same things, to find negatives that are none (GISTEmbed, Solatorio 2024,
    arXiv:2402.16829).

    A candidate is no negative of a row if the guide's cosine of the two exceeds its cosine of the row and the row's
    partner less the margin.

    Attributes:
        query: (N, E) embeddings of the queries by the guide; no gradient flows to it.
        key: (N, E) embeddings of the keys; as many as there are keys.
        negatives: (M, E) embeddings of the further negatives; where absent these are not looked at.
        margin: above 0 more candidates are left out, below 0 fewer.
    """

    query: Tensor
    key: Tensor
    negatives: Tensor | None = None
    margin: float = 0.0


class Side(NamedTuple):
    """N things of one kind, as rows or as columns of the matrix.

    Attributes:
        vectors: (N, D) embeddings, ready to be multiplied.
        ids: (N,) or (N, C) identities.
        seen: (N, E) unit vectors of the guide.
        limit: (N,) the guide's cosine above which another thing is no negative of this one.
        row: (N,) number of the query that a column belongs to, as its partner or as its hard negative; -1 for none.
    """

    vectors: Tensor
    ids: Tensor | None = None
    seen: Tensor | None = None
    limit: Tensor | None = None
    row: Tensor | None = None

    def at(self, where: slice | Tensor) -> Side:
        """Some of the things."""
        return Side._make(None if tensor is None else tensor[where] for tensor in self)


class Candidates(NamedTuple):
    """A batch, checked and made ready.

    Attributes:
        queries: N of them, the rows.
        keys: K of them.
        negatives: M further keys.
        partner: (N,) number of each query's key.
    """

    queries: Side
    keys: Side
    negatives: Side | None
    partner: Tensor


def candidates(
    query: Tensor,
    key: Tensor,
    *,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
    negative_owner: Tensor | None = None,
    own_weight: float = 1.0,
    guide: Guide | None = None,
    similarity: Similarity = "cosine",
    partner: Tensor | None = None,
    empty: bool = False,
) -> Candidates:
    """What :func:`~mmcl.losses.info_nce` is given; ``empty`` allows that there are no rows.

    Raises:
        ValueError: shapes do not fit, or arguments that belong together are not.
    """
    _check_keys(query, key, ids, key_ids, partner, empty)
    _check_rest(query, key, ids, negatives, negative_ids, negative_owner, own_weight, guide)
    given = [query, key] if negatives is None else [query, key, negatives]
    vectors = prepare(*given, similarity=similarity)
    rows = torch.arange(len(query), device=query.device)
    partner = rows if partner is None else partner
    row = torch.full((len(key),), -1, device=query.device).index_copy(0, partner, rows)
    queries, keys = Side(vectors[0], ids), Side(vectors[1], ids if key_ids is None else key_ids, row=row)
    further = None if negatives is None else Side(vectors[2], negative_ids, row=negative_owner)
    if guide is not None:
        seen, theirs = _unit(guide.query), _unit(guide.key)
        # What equals the partner stays, however the products of a tile are rounded.
        limit = (seen * theirs[partner]).sum(dim=1) - guide.margin + 8 * torch.finfo(seen.dtype).eps
        queries = queries._replace(seen=seen, limit=limit)
        keys = keys._replace(seen=theirs, limit=limit.new_zeros(len(key)).index_copy(0, partner, limit))
        if further is not None and guide.negatives is not None:
            further = further._replace(seen=_unit(guide.negatives))
    return Candidates(queries, keys, further, partner)


def dense_logits(
    batch: Candidates,
    temperature: float | Tensor,
    *,
    own_weight: float = 1.0,
    symmetric: bool = True,
    similarity: Similarity = "cosine",
) -> list[Tensor]:
    """The logits from query to key, (N, K + M), in which the partners stand at ``batch.partner``; and if ``symmetric``
    those from each query's key to all queries, (N, N). -∞ is no candidate.

    Raises:
        ValueError: ``temperature`` is not one number above 0, or ``similarity`` is unknown.
    """
    check_temperature(temperature)
    temperature = scalar(temperature)
    queries, keys, negatives, partner = batch
    rows = torch.arange(len(partner), device=partner.device)
    logits = similarities(queries.vectors, keys.vectors, similarity) / temperature  # (N, K)
    forward = _without(logits, excluded(queries, keys), (rows, partner))
    if negatives is not None:
        wrong = similarities(queries.vectors, negatives.vectors, similarity) / temperature  # (N, M)
        if negatives.row is not None and own_weight != 1.0:
            wrong = torch.where(rows[:, None] == negatives.row[None, :], wrong + math.log(own_weight), wrong)
        forward = torch.cat([forward, _without(wrong, excluded(queries, negatives))], dim=1)
    if not symmetric:
        return [forward]
    if len(partner) == len(keys.vectors) and torch.equal(rows, partner):
        return [forward, _without(logits.T, excluded(keys, queries), (rows, rows))]
    return [forward, _without(logits.T[partner], excluded(keys.at(partner), queries), (rows, rows))]


def excluded(rows: Side, columns: Side) -> Tensor | None:
    """(N, M) true where a column is the same thing as a row, or too close to it in the guide's eyes."""
    found = None
    if rows.ids is not None and columns.ids is not None:
        found = same(rows.ids, columns.ids)
    if rows.seen is not None and rows.limit is not None and columns.seen is not None:
        close = rows.seen @ columns.seen.T > rows.limit[:, None]
        found = close if found is None else found | close
    return found


def _unit(seen: Tensor) -> Tensor:
    return prepare(seen.detach(), similarity="cosine")[0]


def _without(logits: Tensor, excluded: Tensor | None, own: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """-∞ for what is excluded, unless it is a row's own partner."""
    if excluded is None:
        return logits
    if own is not None:
        excluded[own] = False
    return logits.masked_fill(excluded, -torch.inf)


def _check_keys(
    query: Tensor, key: Tensor, ids: Tensor | None, key_ids: Tensor | None, partner: Tensor | None, empty: bool
) -> None:
    if partner is None:
        check_pairs(query, key, ids, names=("query", "key"), empty=empty)
    else:
        count = len(query)
        check_pairs(query, key[:count], ids, names=("query", "key"), empty=empty)
        if partner.shape != (count,) or partner.dtype != torch.int64:
            raise ValueError(f"partner must be ({count},) int64, not {tuple(partner.shape)} {partner.dtype}")
        within = bool(((partner >= 0) & (partner < len(key))).all())
        if not within or len(partner.unique()) != count:
            raise ValueError(f"partner must hold different numbers of the {len(key)} keys")
    if ids is not None and key_ids is None and (partner is not None or len(key) != len(query)):
        raise ValueError("ids go with key_ids where partners are given")
    if key_ids is not None and (ids is None or key_ids.ndim != ids.ndim or key_ids.shape[1:] != ids.shape[1:]):
        raise ValueError("key_ids go with ids, and are of the same shape")
    check_ids(key_ids, len(key), "key_ids")


def _check_rest(
    query: Tensor,
    key: Tensor,
    ids: Tensor | None,
    negatives: Tensor | None,
    negative_ids: Tensor | None,
    negative_owner: Tensor | None,
    own_weight: float,
    guide: Guide | None,
) -> None:
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(f"negatives must be (M, {query.shape[1]}), not {tuple(negatives.shape)}")
    if negative_ids is not None and (ids is None or negatives is None or len(negative_ids) != len(negatives)):
        raise ValueError("negative_ids go with ids, and there is one for each of the negatives")
    if negative_ids is not None and ids is not None and negative_ids.shape[1:] != ids.shape[1:]:
        raise ValueError("negative_ids must have as many columns as ids")
    if negative_owner is not None and (negatives is None or negative_owner.shape != (len(negatives),)):
        raise ValueError("negative_owner goes with negatives, and has one row number for each of them")
    if negative_owner is not None and negative_owner.dtype != torch.int64:
        raise ValueError(f"negative_owner must be int64, not {negative_owner.dtype}")
    if negative_owner is not None and not bool(((negative_owner >= -1) & (negative_owner < len(query))).all()):
        raise ValueError(f"negative_owner must hold numbers of the {len(query)} rows, or -1")
    if not 0.0 < own_weight < math.inf:
        raise ValueError(f"own_weight must be more than 0 and finite, not {own_weight}")
    if guide is not None:
        check_pairs(guide.query, guide.key[: len(guide.query)], names=("guide.query", "guide.key"), empty=True)
        if len(guide.query) != len(query) or len(guide.key) != len(key):
            raise ValueError(f"the guide embeds {len(guide.query)} rows of {len(query)}")
        if guide.negatives is not None and (negatives is None or len(guide.negatives) != len(negatives)):
            raise ValueError("guide.negatives go with negatives, and there is one for each of them")

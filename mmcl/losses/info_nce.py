"""InfoNCE, the contrastive cross-entropy over a batch of pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.blockwise.tiled import Statistics, log_sum_exp, own_logits
from mmcl.losses.blockwise.tiles import Across, Plan, Sweep, Tile, as_scale, in_bfloat16, make_plan
from mmcl.losses.candidates import Candidates, Guide, Side, candidates, dense_logits, excluded
from mmcl.losses.pairs import Similarity, check_temperature


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
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
    label_smoothing: float = 0.0,
    partner: Tensor | None = None,
    tile: Tile = "auto",
    across: Across = None,
) -> Tensor:
    r"""Mean cross-entropy of telling each row's partner from all other rows (van den Oord et al. 2018,
    arXiv:1807.03748, eq. 4; symmetric as in CLIP, Radford et al. 2021, arXiv:2103.00020, fig. 3; with hard negatives
    as in SimCSE, Gao et al. 2021, arXiv:2104.08821, eq. 5 and, with their weight, its appendix).

    With s the similarity and τ the temperature, row i of ``query`` contributes

    .. math:: -\log \frac{\exp(s(q_i, k_i) / τ)}
              {\sum_{j \in A(i)} \exp(s(q_i, k_j) / τ) + \sum_{m \in B(i)} α_{im} \exp(s(q_i, n_m) / τ)}

    where A(i) holds i itself and every j that is not the same thing as i, B(i) the further negatives that are not the
    same thing as i, and α_im is ``own_weight`` for the row's own hard negatives and 1 for all others. A guide takes
    more out of A(i) and B(i).

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i belongs to row i of ``query``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, C) integers. Rows that agree in any of the C columns are the same thing: they are never each
            other's negatives, and leave the denominator.
        key_ids: the same of the keys, where it is not what the queries have: query i and key j are the same thing if
            row i of ``ids`` and row j of ``key_ids`` agree in any column. For texts a paired with texts p, ``ids`` of
            (a, a, p, p) and ``key_ids`` of (a, p, a, p) keep apart whatever shares a text.
        negatives: (M, D) further keys, wrong for every query. They have no partner, so they enter the direction from
            query to key alone.
        negative_ids: (M,) or (M, C) integers, as ``key_ids``: what is the same thing as a query leaves its denominator.
        negative_owner: (M,) integers: the row whose hard negative it is, or -1.
        own_weight: α > 0, how much a row's own hard negatives count in its denominator. SimCSE's code takes ln α.
        guide: what another model makes of the same things, by which negatives that are too close are left out, in both
            directions. GISTEmbed itself compares queries with queries and keys with keys besides.
        symmetric: average with the direction from key to query.
        similarity: ``cosine``, ``dot``, or ``euclidean`` (the negative distance).
        label_smoothing: share of the target spread evenly over what is in the denominator (arXiv:1512.00567, sec. 7).
        partner: (N,) int64, where there are K > N keys: row i of ``query`` belongs to row partner[i] of ``key``, each
            to another one. ``key_ids`` then are those of the K keys, and go with ``ids``. From key to query, only keys
            that are somebody's partner are rows.
        tile: rows and columns of the tiles in which the matrix of logits is computed, and computed again for the
            gradient, in O((N + K)·D) memory; None holds the whole matrix, ``auto`` while it has no more than 1,024²
            logits. The result is the same but for rounding. Where all embeddings came in bfloat16 and the hardware
            multiplies it, so do tiles, and add up in float32: gradients of embeddings are then within 1% of their norm,
            that of a temperature of 0.02 or less within 3%. There is no second derivative in tiles.
        across: None if the arguments are the whole batch. Else each process of the default group passes its own rows,
            of which the numbers may differ or be 0, and all get the loss of the whole batch; owners and partners are
            numbers of the process's own rows. Each computes its queries against all keys: with ``gather`` it holds all
            of them; with ``ring`` keys go around, a process never holds those of more than two, and the next are under
            way while these are worked on. Backward gives each of W processes W times its own contribution to the
            gradient, of embeddings and temperature alike: data parallelism averages over processes, and the average is
            then the gradient of the whole batch. With one process it changes nothing.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, arguments that belong together are not, ``similarity`` is none of the three,
            ``temperature`` not above 0, ``label_smoothing`` not in [0, 1), or ``tile`` or ``across`` not what they can
            be; on all processes, if they do not give the same arguments, (0, D) where one has none, or none of them has
            a row.

    >>> image = torch.eye(8)
    >>> info_nce(image, image).item() < 1e-4  # every image is nearest to its own text
    True
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
    check_temperature(temperature)
    with torch.autocast(query.device.type, enabled=False):
        batch = candidates(
            query,
            key,
            ids=ids,
            key_ids=key_ids,
            negatives=negatives,
            negative_ids=negative_ids,
            negative_owner=negative_owner,
            own_weight=own_weight,
            guide=guide,
            similarity=similarity,
            partner=partner,
            empty=across is not None,
        )
        plan = make_plan(batch, tile, across, similarity, half=in_bfloat16(query, key, negatives))
        if plan is not None:
            return _tiled(batch, temperature, plan, own_weight, symmetric, label_smoothing)
        directions = dense_logits(batch, temperature, own_weight=own_weight, symmetric=symmetric, similarity=similarity)
        partners = (batch.partner, torch.arange(len(query), device=query.device))
        losses = [_cross_entropy(*direction, label_smoothing) for direction in zip(directions, partners, strict=False)]
        return torch.stack(losses).mean()


@torch.no_grad()
def batch_accuracy(
    query: Tensor,
    key: Tensor,
    *,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    similarity: Similarity = "cosine",
    partner: Tensor | None = None,
    tile: Tile = "auto",
    across: Across = None,
) -> Tensor:
    """Share of rows, in [0, 1], whose partner is strictly the most similar of the batch's keys.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i belongs to row i of ``query``.
        ids: as in :func:`info_nce`; rows that are the same thing do not compete.
        key_ids: as in :func:`info_nce`.
        similarity: this argument and those below as in :func:`info_nce`.
        partner: of the queries.
        tile: rows and columns of a tile.
        across: the processes whose batch it is.

    Raises:
        ValueError: shapes do not fit, or ``similarity`` is unknown.
    """
    with torch.autocast(query.device.type, enabled=False):
        batch = candidates(
            query, key, ids=ids, key_ids=key_ids, similarity=similarity, partner=partner, empty=across is not None
        )
        plan = make_plan(batch, tile, across, similarity, half=False)
        if plan is not None:
            return _share_of_wins(batch.queries, batch.keys, plan)
        (scores,) = dense_logits(batch, 1.0, symmetric=False, similarity=similarity)
        own = scores.gather(1, batch.partner[:, None])
        others = scores.scatter(1, batch.partner[:, None], -torch.inf)
        return (own.squeeze(1) > others.amax(dim=1)).float().mean()


def _share_of_wins(rows: Side, columns: Side, plan: Plan) -> Tensor:
    """Share of the rows of all processes whose own column has a larger similarity than any other."""
    one = rows.vectors.new_ones(())
    own, best = (torch.full_like(rows.vectors[:, 0], -torch.inf) for _ in range(2))

    sweep = Sweep(rows, one, plan)

    def work(shard: Side, _: list[Tensor]) -> None:
        for r, c, z in sweep.tiles(shard):
            found = sweep.own(r, c, shard)
            mask = excluded(rows.at(r), shard.at(c))
            if found is not None:
                # From the tile itself, for a tie must be one to the last bit.
                row, column = (part[found[0]] for part in found[1:])
                own[r.start + row] = z[row, column]
                z[row, column] = -torch.inf
            if mask is not None:
                z.masked_fill_(mask, -torch.inf)
            torch.maximum(best[r], z.amax(dim=1), out=best[r])

    plan.tour(columns, plan.keys, work)
    return (plan.exchange.total((own > best).sum()) / plan.exchange.rows).float()


def _tiled(
    batch: Candidates,
    temperature: float | Tensor,
    plan: Plan,
    own_weight: float,
    symmetric: bool,
    label_smoothing: float,
) -> Tensor:
    """The loss by statistics of each row's other candidates."""
    queries, keys, negatives, partner = batch
    scale = as_scale(temperature, queries.vectors)
    own = own_logits(queries, keys, partner, scale, plan)
    totals = label_smoothing > 0.0
    there, back = log_sum_exp(queries, keys, plan.keys, scale, own, plan, both=symmetric, totals=totals)
    if negatives is not None:
        if own_weight == 1.0 or negatives.row is None:
            negatives = negatives._replace(row=None)
        further, _ = log_sum_exp(
            queries, negatives, plan.negatives, scale, own, plan, totals=totals, own_weight=own_weight
        )
        there = Statistics(torch.logaddexp(there.lse, further.lse), *map(torch.add, there[1:], further[1:]))
    directions = [there, Statistics(*(x[partner] for x in back))] if symmetric else [there]
    losses = [_cross_entropy_of(others, own.to(others.lse.dtype), label_smoothing) for others in directions]
    return plan.exchange.total(torch.stack(losses).mean(dim=0).sum() / plan.exchange.rows).to(own.dtype)


def _cross_entropy_of(others: Statistics, own: Tensor, label_smoothing: float) -> Tensor:
    """(N,) cross-entropies of telling partners, whose logits are ``own``, from others."""
    # log(1 + exp(·)); the threshold above which it returns its argument is too low for float64 by default.
    loss = F.softplus(others.lse - own, threshold=40.0)
    if label_smoothing > 0.0:
        even = (others.total + own) / (others.number + 1) - (own + loss)
        loss = (1 - label_smoothing) * loss - label_smoothing * even
    return loss


def _cross_entropy(logits: Tensor, partner: Tensor, label_smoothing: float) -> Tensor:
    """Mean over the rows of (N, M) logits, of which row i has its partner in column partner[i]; -∞ is no candidate."""
    log_p = logits.log_softmax(dim=1)
    gain = log_p.gather(1, partner[:, None]).squeeze(1)
    if label_smoothing > 0.0:
        # F.cross_entropy would spread the target over what is no candidate, and give infinity.
        absent = logits.isneginf()
        even = log_p.masked_fill(absent, 0.0).sum(dim=1) / (~absent).sum(dim=1)
        gain = (1 - label_smoothing) * gain + label_smoothing * even
    return -gain.mean()

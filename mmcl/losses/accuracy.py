"""The accuracy of a batch: what losses that compare its rows maximise, as a number to log."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.blockwise.blocks import BlockIterator
from mmcl.losses.blockwise.plan import DEFAULT, BlockPlan, Blockwise, make_plan
from mmcl.losses.logits.candidates import EmbeddingSet, Ids, candidates, dense_logits, exclusion_mask
from mmcl.losses.logits.similarity import Similarity, prepare, similarities


@torch.no_grad()
def batch_accuracy(
    query: Tensor,
    key: Tensor,
    *,
    ids: Ids | None = None,
    similarity: Similarity = "cosine",
    blockwise: Blockwise = DEFAULT,
) -> Tensor:
    """Share of the queries, in [0, 1], to which their positive is strictly the most similar of the batch's keys.

    Args:
        query: (N, D) embeddings.
        key: (N, D) embeddings; row i is the positive of row i of ``query``.
        ids: as in :func:`~mmcl.losses.info_nce`; duplicates of a query do not compete.
        similarity: ``cosine``, ``dot``, or ``euclidean`` (the negative distance).
        blockwise: how the matrix of similarities is computed.

    Raises:
        ValueError: shapes do not fit, or ``similarity`` is unknown.

    >>> batch_accuracy(torch.eye(4), torch.eye(4)).item()
    1.0
    """
    with torch.autocast(query.device.type, enabled=False):
        batch = candidates(query, key, ids=ids, similarity=similarity, empty=blockwise.across is not None)
        plan = make_plan(batch, blockwise, "full")
        if plan is not None:
            return _blockwise(batch.queries, batch.keys, plan)
        (scores,) = dense_logits(batch, 1.0, symmetric=False)
        own = scores.diagonal().clone()
        others = scores.fill_diagonal_(-torch.inf)
        return (own > others.amax(dim=1)).float().mean()


@torch.no_grad()
def label_accuracy(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Share of the rows, in [0, 1], whose most similar other row has their label: precision at 1 within the batch.

    Args:
        embeddings: (N, D), compared by their cosines.
        labels: (N,) integers. Rows whose label no other row has do not count; 0 where there are no others.

    >>> label_accuracy(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])).item()
    1.0
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        (embeddings,) = prepare(embeddings, similarity="cosine")
        others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        nearest = similarities(embeddings, embeddings, "cosine").masked_fill(~others, -torch.inf).argmax(dim=1)
        counted = ((labels[:, None] == labels) & others).any(dim=1)
        return (counted & (labels[nearest] == labels)).sum() / counted.sum().clamp(min=1)


def _blockwise(rows: EmbeddingSet, columns: EmbeddingSet, plan: BlockPlan) -> Tensor:
    """Share of the rows of all processes whose positive has a larger similarity than any other column."""
    one = rows.vectors.new_ones(())
    own, best = (torch.full_like(rows.vectors[:, 0], -torch.inf) for _ in range(2))
    blocks = BlockIterator(rows, one, plan)

    def work(shard: EmbeddingSet, _: list[Tensor]) -> None:
        for r, c, z in blocks.tiles(shard):
            found = blocks.owned(r, c, shard)
            mask = exclusion_mask(rows.at(r), shard.at(c))
            if found is not None:
                # From the tile itself, so that ties are exact.
                row, column = (part[found[0]] for part in found[1:])
                own[r.start + row] = z[row, column]
                z[row, column] = -torch.inf
            if mask is not None:
                z.masked_fill_(mask, -torch.inf)
            torch.maximum(best[r], z.amax(dim=1), out=best[r])

    plan.map_shards(columns, plan.keys, work)
    return (plan.exchange.all_reduce_sum((own > best).sum()) / plan.exchange.global_rows).float()

"""Judging the model during training, on the same cached pixels and features that training uses."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from mmcl.evaluation import diagnose, retrieval_pairs
from mmcl.models.encoder import Encoder
from mmcl.runtime import distributed
from mmcl.training.columns import FEATURES_A_BATCH, Column
from mmcl.training.table_feed import TableFeed

log = logging.getLogger("mmcl")


def evaluate(encoder: Encoder, feed: TableFeed, ks: Sequence[int], *, bootstrap: int = 0) -> dict[str, float]:
    """Retrieval between the rows' pictures and all their captions, both ways.

    Equal captions are right answers for each other's pictures, and equal pictures for each other's captions. Every
    process embeds its share, and the vectors are gathered once; so all processes call this together.

    A space that has collapsed is warned of.

    Returns:
        ``image_to_text/hit@1`` and so on, fractions in [0, 1]; and what :func:`mmcl.evaluation.diagnose` tells of the
        space, as ``space/alignment`` and so on. Empty in all processes but the first.
    """
    rows = feed.positions
    images, _ = feed.columns["image"].items(rows)
    texts, owner = feed.columns["text"].items(rows)
    image_vectors = _embed(encoder, "image", feed.columns["image"], images)
    text_vectors = _embed(encoder, "text", feed.columns["text"], texts)
    if distributed.rank() != 0:
        return {}
    scores = retrieval_pairs(
        image_vectors,
        text_vectors,
        image_of_text=owner,
        image_ids=feed.columns["image"].hashes[images],
        text_ids=feed.columns["text"].hashes[texts],
        ks=ks,
        bootstrap=bootstrap,
    )
    metrics = {f"{way}/{name}": value for way, judged in scores.items() for name, value in judged.metrics.items()}
    if min(len(image_vectors), len(text_vectors)) < 2:  # a single vector has no geometry
        return metrics
    space = diagnose(image_vectors, text_vectors, owner)
    for reason in space.collapsed:
        log.warning("%s: %s", feed.name, reason)
    return metrics | {f"space/{name}": value for name, value in space.metrics().items()}


@torch.no_grad()
def _embed(encoder: Encoder, modality: str, column: Column, items: np.ndarray) -> np.ndarray:
    """(len(items), D) unit vectors, of which this process computes its share."""
    world, rank = distributed.world_size(), distributed.rank()
    share = math.ceil(len(items) / world)
    # Equal shares, the last one filled up with repetitions: a sharded tower runs in all processes or in none.
    mine = items[np.minimum(np.arange(rank * share, (rank + 1) * share), len(items) - 1)]
    out = torch.empty(share, encoder.dim, device=encoder.device)
    training = encoder.training
    encoder.eval()
    for start in range(0, share, FEATURES_A_BATCH):
        chunk = mine[start : start + FEATURES_A_BATCH]
        inputs = {name: tensor.to(encoder.device) for name, tensor in column.inputs(chunk).items()}
        out[start : start + len(chunk)] = F.normalize(encoder.embedder(modality)(**inputs).float(), dim=1)
    encoder.train(training)
    return distributed.gather_rows(out)[: len(items)].cpu().numpy()

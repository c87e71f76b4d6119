"""Judging the model during training, on the same cached pixels and features that training uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from mmcl.evaluation import retrieval_pairs
from mmcl.models.encoder import Encoder
from mmcl.training.feed import FEATURES_A_BATCH, Column, Feed


def evaluate(encoder: Encoder, feed: Feed, ks: Sequence[int], *, bootstrap: int = 0) -> dict[str, float]:
    """Retrieval between the rows' pictures and all their captions, both ways.

    Equal captions are right answers for each other's pictures, and equal pictures for each other's captions.

    Returns:
        ``image_to_text/hit@1`` and so on; fractions in [0, 1].
    """
    rows = feed.positions
    images, _ = feed.columns["image"].items(rows)
    texts, owner = feed.columns["text"].items(rows)
    scores = retrieval_pairs(
        _embed(encoder, "image", feed.columns["image"], images),
        _embed(encoder, "text", feed.columns["text"], texts),
        image_of_text=owner,
        image_ids=feed.columns["image"].hashes[images],
        text_ids=feed.columns["text"].hashes[texts],
        ks=ks,
        bootstrap=bootstrap,
    )
    return {f"{way}/{name}": value for way, judged in scores.items() for name, value in judged.metrics.items()}


@torch.inference_mode()
def _embed(encoder: Encoder, modality: str, column: Column, items: np.ndarray) -> np.ndarray:
    """(len(items), D) unit vectors."""
    out = np.empty((len(items), encoder.dim), dtype=np.float32)
    training = encoder.training
    encoder.eval()
    for start in range(0, len(items), FEATURES_A_BATCH):
        chunk = items[start : start + FEATURES_A_BATCH]
        inputs = {name: tensor.to(encoder.device) for name, tensor in column.inputs(chunk).items()}
        vectors = encoder.embedder(modality)(**inputs).float()
        out[start : start + len(chunk)] = F.normalize(vectors, dim=1).cpu().numpy()
    encoder.train(training)
    return out

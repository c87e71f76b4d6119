"""The nearest neighbours of many vectors, exactly, in tiles: a matrix of all similarities is never held."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmcl.evaluation.metrics.ranking import Vectors
from mmcl.losses.logits.similarity import unit_length


def nearest(
    queries: Vectors,
    corpus: Vectors,
    k: int,
    *,
    device: torch.device,
    query_rows: int = 512,
    corpus_rows: int = 16384,
) -> tuple[Tensor, Tensor]:
    """For each query the k rows of the corpus of the largest cosine, best first.

    Args:
        queries: (Q, D).
        corpus: (C, D).
        k: from 1 to C.
        device: where to compute, in float32.
        query_rows, corpus_rows: of a tile.

    Returns:
        Cosines (Q, k) and rows of the corpus (Q, k), on the device.
    """
    blocks = _unit(queries, device).split(query_rows)
    best = [
        (block.new_empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64, device=device))
        for block in blocks
    ]
    for first in range(0, len(corpus), corpus_rows):
        tile = _unit(corpus[first : first + corpus_rows], device)
        for number, block in enumerate(blocks):
            found, place = (block @ tile.T).topk(min(k, len(tile)), dim=1)
            cosines, rows = (torch.cat(both, 1) for both in zip(best[number], (found, place + first), strict=True))
            cosines, place = cosines.topk(min(k, cosines.shape[1]), dim=1)
            best[number] = cosines, rows.gather(1, place)
    return torch.cat([cosines for cosines, _ in best]), torch.cat([rows for _, rows in best])


def _unit(vectors: Vectors, device: torch.device) -> Tensor:
    if not isinstance(vectors, Tensor):
        vectors = torch.from_numpy(np.array(vectors, dtype=np.float32))  # a copy: a memory map may be read-only
    return unit_length(vectors.to(device, torch.float32))

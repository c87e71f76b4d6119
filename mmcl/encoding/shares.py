"""Vectors of many items by the weights as they are, each process computing its share."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from mmcl.data.batches.columns import FEATURES_A_BATCH
from mmcl.losses.logits.similarity import unit_length
from mmcl.models.towers import Towers
from mmcl.runtime import distributed, sharding
from mmcl.runtime.device import DTYPES
from mmcl.runtime.errors import NotFiniteError
from mmcl.runtime.progress import log_progress


def share_of(count: int) -> np.ndarray:
    """The places, of ``count`` (at least 1), that are this process's: one in each W of W processes.

    All shares are equally long, the last ones filled up with the last place: a sharded tower runs in all processes or
    in none.
    """
    world = distributed.world_size()
    return np.minimum(np.arange(math.ceil(count / world)) * world + distributed.rank(), count - 1)


def from_shares(mine: Tensor, count: int) -> Tensor:
    """(count, …) what all processes have made of their shares; all call this together, each with its own."""
    gathered = distributed.gather_rows(mine).unflatten(0, (distributed.world_size(), -1))
    return gathered.transpose(0, 1).flatten(0, 1)[:count]  # place i was made by process i % W


def _computing_in(precision: str | None, device: torch.device) -> AbstractContextManager[object]:
    if precision is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "float32")


@torch.no_grad()
def embed(
    encoder: Towers,
    modality: str,
    inputs: Callable[[np.ndarray], dict[str, Tensor]],
    count: int,
    normalize: bool = True,
    precision: str | None = None,
) -> np.ndarray:
    """(count, D) float32 vectors, without dropout and augmentation; all processes call this together.

    Every share is of one model: running statistics become those of process 0. What a sharded tower has gathered of its
    weights is let go, so that the next pass sees it if the shards change in between, as from an average to the weights
    themselves.

    Args:
        encoder: whose mode, of training or evaluation, is as before afterwards.
        modality: of the items.
        inputs: the embedder's inputs for the items at these places.
        count: of the items, at least 1.
        normalize: to unit length.
        precision: of the towers; what autocast has chosen around the call if absent.

    Raises:
        NotFiniteError: a vector holds a NaN or an infinity; in all processes.
    """
    mine, embedder = share_of(count), encoder.embedder(modality)
    distributed.broadcast_buffers(embedder)
    out = torch.empty(len(mine), encoder.width, device=encoder.device)
    training = encoder.training
    encoder.eval()
    with log_progress(f"embed {modality}s", len(mine), "items") as advance:
        for start in range(0, len(mine), FEATURES_A_BATCH):
            chunk = mine[start : start + FEATURES_A_BATCH]
            moved = {name: tensor.to(encoder.device) for name, tensor in inputs(chunk).items() if tensor is not None}
            with _computing_in(precision, encoder.device):
                vectors = embedder(**moved).float()
            out[start : start + len(chunk)] = unit_length(vectors) if normalize else vectors
            advance(len(chunk))
    encoder.train(training)
    sharding.reshard(embedder)
    found = from_shares(out, count)
    if broken := int((~found.isfinite().all(1)).sum()):
        raise NotFiniteError(f"{broken:,} of {count:,} {modality} vectors became nan or infinite", "vectors")
    return found.cpu().numpy()

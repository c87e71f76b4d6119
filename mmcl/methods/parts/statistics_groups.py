"""Batch normalisation with statistics of groups of rows, which are other groups for keys than for queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcl.runtime import distributed


def has_batch_norm(module: nn.Module) -> bool:
    """Whether an embedding by ``module`` may depend on the other rows of the pass."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def embed_in_groups(embedder: nn.Module, pixels: Tensor, rows: int) -> Tensor:
    """(N, D) embeddings of N images, which pass in consecutive groups of about ``rows``, each with its own batch
    statistics; in one pass where no layer takes any."""
    if not _takes_statistics(embedder):
        return embedder(pixels=pixels)
    return torch.cat([embedder(pixels=group) for group in pixels.tensor_split(_groups(len(pixels), rows))])


@torch.no_grad()
def embed_shuffled(embedder: nn.Module, pixels: Tensor, rows: int) -> Tensor:
    """The same without gradient, in groups that cut across those of :func:`embed_in_groups` (shuffling BN, He et al.
    2020, arXiv:1911.05722, section 3.3).

    The images of all processes are dealt out to the groups one by one, and return to their processes as embeddings. So
    the positives of a group of queries are spread over all groups of keys, and no statistics that the two share give
    them away. The rows of a batch are in random order, so that no other draw is needed.
    """
    if not _takes_statistics(embedder):
        return embedder(pixels=pixels)
    counts, own = distributed.row_counts(len(pixels), pixels.device), distributed.rank()
    order = _dealt(sum(counts), rows).to(pixels.device)
    mine = order.split(counts)[own]
    keys = distributed.gather_rows(
        embed_in_groups(embedder, distributed.gather_rows(pixels, counts)[mine], rows), counts
    )
    return keys[order.argsort()].split(counts)[own]


def _takes_statistics(module: nn.Module) -> bool:
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


def _dealt(count: int, rows: int) -> Tensor:
    """The numbers of ``count`` rows, group by group, when they are dealt out to groups of about ``rows``."""
    return (torch.arange(count) % _groups(count, rows)).argsort(stable=True)


def _groups(count: int, rows: int) -> int:
    """A single row has no statistics."""
    return max(1, min(round(count / rows), count // 2))

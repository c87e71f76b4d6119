"""The pairwise sigmoid loss of SigLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.blockwise.tiled import own_logits, softplus_sum
from mmcl.losses.blockwise.tiles import Across, Plan, Tile, as_number, as_scale, in_bfloat16, make_plan
from mmcl.losses.candidates import Candidates, candidates
from mmcl.losses.pairs import Similarity, check_number, check_pairs, check_temperature, repeats, scalar, similarities


def sigmoid(
    image: Tensor,
    text: Tensor,
    temperature: float | Tensor,
    bias: float | Tensor,
    *,
    ids: Tensor | None = None,
    similarity: Similarity = "cosine",
    tile: Tile = "auto",
    across: Across = None,
) -> Tensor:
    r"""Every pair of the batch judged for itself: does this text belong to this image? (Zhai et al. 2023,
    arXiv:2303.15343).

    With s the similarity, τ the temperature, b the bias, and z 1 for the pairs i = j and -1 for all others,

    .. math:: -\frac{1}{N} \sum_{i,j} \log σ(z_{ij} (s(x_i, y_j) / τ + b))

    The sum is over all N² pairs and divided by N, so that a positive weighs the same in every batch; the bias makes up
    for there being N - 1 negatives to each. No row needs the others for normalisation.

    Args:
        image: (N, D) embeddings.
        text: (N, D) embeddings; row i belongs to row i of ``image``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        bias: b, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, C) integers. Two rows that agree in any of the C columns are the same thing: the pairs of the
            one's image with the other's text leave the sum, for they are surely no negatives, and the data do not name
            them as positives either. The divisor stays N.
        similarity: ``cosine``, ``dot``, or ``euclidean`` (the negative distance).
        tile: this argument and the next as in :func:`~mmcl.losses.info_nce`: rows and columns of the tiles in which the
            matrix of logits is computed, in O(N·D) memory.
        across: the processes whose batch it is.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, ``temperature`` is not above 0, ``similarity`` is none of the three, or ``tile``
            or ``across`` not what they can be.

    >>> image = torch.eye(8)
    >>> sigmoid(image, image, 0.05, -10.0).item() < 0.01  # every pair is told for what it is
    True
    """
    check_pairs(image, text, ids, names=("image", "text"), empty=across is not None)
    check_temperature(temperature)
    check_number(bias, "bias")
    with torch.autocast(image.device.type, enabled=False):
        batch = candidates(image, text, ids=ids, similarity=similarity, empty=across is not None)
        plan = make_plan(batch, tile, across, similarity, half=in_bfloat16(image, text))
        if plan is not None:
            return _tiled(batch, temperature, bias, plan)
        temperature, bias = scalar(temperature), scalar(bias)
        logits = similarities(batch.queries.vectors, batch.keys.vectors, similarity) / temperature + bias  # (N, N)
        labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        terms = -F.logsigmoid(labels * logits)
        if ids is not None:
            terms = terms.masked_fill(repeats(ids), 0.0)
        return terms.sum(dim=1).mean()


def _tiled(batch: Candidates, temperature: float | Tensor, bias: float | Tensor, plan: Plan) -> Tensor:
    """The positives by themselves, and the sum over all others in tiles."""
    images, texts, _, partner = batch
    scale, bias = as_scale(temperature, images.vectors), as_number(bias, images.vectors)
    positives = own_logits(images, texts, partner, scale, plan) + bias
    others = softplus_sum(images, texts, scale, bias, plan)
    terms = others - F.logsigmoid(positives.to(others.dtype))
    return plan.exchange.total(terms.sum() / plan.exchange.rows).to(positives.dtype)

"""The pairwise sigmoid loss of SigLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.blockwise.log_sum_exp import positive_logits
from mmcl.losses.blockwise.plan import DEFAULT, BlockPlan, Blockwise, as_number, as_scale, make_plan, precision_of
from mmcl.losses.blockwise.softplus_sum import softplus_sum
from mmcl.losses.logits.candidates import Candidates, candidates, duplicate_mask
from mmcl.losses.logits.checks import check_number, check_pairs, check_temperature, scalar
from mmcl.losses.logits.similarity import Similarity, similarities


def sigmoid(
    image: Tensor,
    text: Tensor,
    temperature: float | Tensor,
    bias: float | Tensor,
    *,
    ids: Tensor | None = None,
    similarity: Similarity = "cosine",
    blockwise: Blockwise = DEFAULT,
) -> Tensor:
    r"""Binary cross-entropy of every pair of an image and a text of the batch (SigLIP, Zhai et al. 2023,
    arXiv:2303.15343, eq. 1).

    With s the similarity, τ the temperature, b the bias, and z 1 for the pairs i = j and -1 for all others,

    .. math:: -\frac{1}{N} \sum_{i,j} \log σ(z_{ij} (s(x_i, y_j) / τ + b))

    The sum over all N² pairs is divided by N, so that a positive has the same weight in a batch of any size; the bias
    offsets the N - 1 negatives to each positive.

    Args:
        image: (N, D) embeddings.
        text: (N, D) embeddings; row i belongs to row i of ``image``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        bias: b, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, C) integers. Rows that agree in any of the C columns are duplicates: the image of one with the
            text of the other is neither a positive nor a negative, and leaves the sum. The divisor stays N.
        similarity: ``cosine``, ``dot``, or ``euclidean`` (the negative distance).
        blockwise: how the matrix of logits is computed: in tiles, and over several processes.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, ``temperature`` is not above 0, ``similarity`` is none of the three, or
            ``blockwise`` not what it can be.

    >>> image = torch.eye(8)
    >>> sigmoid(image, image, 0.05, -10.0).item() < 0.01  # every pair is classified correctly
    True
    """
    check_pairs(image, text, ids, names=("image", "text"), empty=blockwise.across is not None)
    check_temperature(temperature)
    check_number(bias, "bias")
    with torch.autocast(image.device.type, enabled=False):
        batch = candidates(image, text, ids=ids, similarity=similarity, empty=blockwise.across is not None)
        plan = make_plan(batch, blockwise, precision_of(image, text))
        if plan is not None:
            return _blockwise(batch, temperature, bias, plan)
        temperature, bias = scalar(temperature), scalar(bias)
        logits = similarities(batch.queries.vectors, batch.keys.vectors, similarity) / temperature + bias  # (N, N)
        labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        terms = -F.logsigmoid(labels * logits)
        if ids is not None:
            terms = terms.masked_fill(duplicate_mask(ids, ids).fill_diagonal_(False), 0.0)
        return terms.sum(dim=1).mean()


def _blockwise(batch: Candidates, temperature: float | Tensor, bias: float | Tensor, plan: BlockPlan) -> Tensor:
    """The positives, and the sum over all other pairs in tiles."""
    images, texts = batch.queries, batch.keys
    scale, bias = as_scale(temperature, images.vectors), as_number(bias, images.vectors)
    positives = positive_logits(images, texts, scale, plan) + bias
    others = softplus_sum(images, texts, scale, bias, plan)
    terms = others - F.logsigmoid(positives.to(others.dtype))
    return plan.exchange.all_reduce_sum(terms.sum() / plan.exchange.global_rows).to(positives.dtype)

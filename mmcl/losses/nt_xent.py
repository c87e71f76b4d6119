"""NT-Xent, the contrastive loss of SimCLR."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.losses.blockwise.plan import DEFAULT, Blockwise
from mmcl.losses.info_nce import info_nce
from mmcl.losses.logits.checks import check_pairs
from mmcl.runtime.distributed import rank, world_size


def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    ids: Tensor | None = None,
    blockwise: Blockwise = DEFAULT,
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy between two views of each row (SimCLR, Chen et al. 2020,
    arXiv:2002.05709, eq. 1).

    With z the 2N embeddings of both views, p(i) the other view of the row of z_i, and s the cosine,

    .. math:: -\frac{1}{2N} \sum_{i=1}^{2N}
              \log \frac{\exp(s(z_i, z_{p(i)}) / τ)}{\sum_{j \neq i} \exp(s(z_i, z_j) / τ)}

    so that each embedding has one positive and 2N - 2 negatives, those of its own view among them.

    Args:
        view_a: (N, D) embeddings of one view.
        view_b: (N, D) embeddings of the other; row i belongs to row i of ``view_a``.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        ids: (N,) or (N, C) integers. Rows that agree in any of the C columns are duplicates, and leave each other's
            denominators. If absent all rows differ.
        blockwise: how the (2N, 2N) matrix of logits is computed; with ``across``, each process passes its own rows.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, or ``temperature`` is not one number above 0.

    >>> view = torch.eye(4)
    >>> round(nt_xent(view, view, 0.5).item(), 4)  # ln(1 + 6 exp(-2)): one positive of cosine 1, six negatives of 0
    0.5944
    """
    check_pairs(view_a, view_b, ids, names=("view_a", "view_b"), empty=blockwise.across is not None)
    if ids is None:  # one for each row of all processes
        ids = torch.arange(len(view_a), device=view_a.device) * world_size() + rank()
    query, key = torch.cat([view_a, view_b]), torch.cat([view_b, view_a])
    # Both views of a row have its id, so that an embedding is not its own negative.
    ids = torch.cat([ids, ids])
    return info_nce(query, key, temperature, ids=ids, symmetric=False, blockwise=blockwise)

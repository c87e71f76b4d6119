"""The supervised contrastive loss."""

from __future__ import annotations

from torch import Tensor

from mmcl.losses.blockwise.plan import DEFAULT, Blockwise
from mmcl.losses.info_nce import info_nce
from mmcl.losses.logits.positives import Positives


def sup_con(
    features: Tensor, labels: Tensor, temperature: float | Tensor = 0.07, *, blockwise: Blockwise = DEFAULT
) -> Tensor:
    r"""InfoNCE whose positives are all other views of the same label (SupCon, Khosla et al. 2020, arXiv:2004.11362,
    eq. 2, L_out).

    With z the N·V embeddings of V views of N rows, P(i) the others of the label of z_i, and s the cosine,

    .. math:: -\frac{1}{NV} \sum_i \frac{1}{|P(i)|} \sum_{p \in P(i)}
              \log \frac{\exp(s(z_i, z_p) / τ)}{\sum_{a \neq i} \exp(s(z_i, z_a) / τ)}

    This is the equation: the authors' code multiplies it by τ / ``base_temperature``, which is 1 by default. Where a
    row has one view and no other of its label, it contributes nothing, and the mean is over the others. With every
    label different it is NT-Xent.

    Args:
        features: (N, V, D) embeddings of V ≥ 1 views of each row, which need not be normalised.
        labels: (N,) integers.
        temperature: τ > 0, a number or a tensor of one element, through which gradient flows.
        blockwise: how the (NV, NV) matrix of logits is computed; with ``across``, each process passes its own rows.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, or ``temperature`` is not one number above 0.

    >>> import torch
    >>> features = torch.eye(4).reshape(2, 2, 4)  # four views, all orthogonal
    >>> round(sup_con(features, torch.tensor([0, 1])).item(), 4)  # ln 3
    1.0986
    """
    if features.ndim != 3 or features.shape[1] == 0 or labels.shape != features.shape[:1]:
        shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"features and labels must be (N, V, D) with V ≥ 1 and (N,), not {shapes}")
    positives = Positives(labels.repeat_interleave(features.shape[1]))
    return info_nce(features.flatten(0, 1), None, temperature, positives=positives, blockwise=blockwise)

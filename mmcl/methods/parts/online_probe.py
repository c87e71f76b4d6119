"""A linear classifier that learns beside the towers, to see in the log what their embeddings tell of the labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.methods.outputs import Outputs
from mmcl.methods.parts.state import MethodState

PROBE = "probe_label"
"""The role of the column that the labels stand in."""
_RATE, _MOMENTUM = 1.0, 0.9


class OnlineProbe(MethodState):
    """Logistic regression on the embeddings of a view, without gradient for the towers, by SGD with momentum.

    Embeddings are standardised by their batch, as by a batch normalisation without scale and shift, and divided by √D.
    Whatever they are, their covariance then has no eigenvalue above 1, and the rate of 1 is stable: the loss has a
    curvature of at most ½, and momentum m allows rates below 2 (1 + m) / ½ = 7.6. There is nothing to set.

    Args:
        labels: (N,) int64 labels of all training rows, equal where the labels are.
        width: D of the embeddings.
        view: name of the embeddings.
        count: of the view, draws of each row.
    """

    classes: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, labels: np.ndarray, width: int, view: str, count: int) -> None:
        super().__init__()
        self.view, self.count = view, count
        self.register_buffer("classes", torch.from_numpy(np.unique(labels)), persistent=False)
        for name in ("weight", "weight_momentum"):
            self.register_buffer(name, torch.zeros(width, len(self.classes)))
        for name in ("bias", "bias_momentum"):
            self.register_buffer(name, torch.zeros(len(self.classes)))

    @torch.no_grad()
    def update(self, outputs: Outputs) -> dict[str, Tensor]:
        """Learn from a step.

        Args:
            outputs: of the global batch, before heads for training, with labels by the role ``PROBE``.

        Returns:
            ``probe_loss`` and ``probe_accuracy`` on the batch before it is learned from.
        """
        vectors = outputs.embeddings[self.view].float()
        labels = torch.searchsorted(self.classes, outputs.rows.labels[PROBE]).repeat_interleave(self.count)
        values = F.batch_norm(vectors, None, None, training=True) / vectors.shape[1] ** 0.5
        shares = torch.addmm(self.bias, values, self.weight).softmax(1)
        loss = -shares.gather(1, labels[:, None]).clamp(min=torch.finfo(shares.dtype).tiny).log().mean()
        accuracy = (shares.argmax(1) == labels).float().mean()
        residual = (shares - F.one_hot(labels, len(self.classes))) / len(labels)
        for name, gradient in (("weight", values.T @ residual), ("bias", residual.sum(0))):
            momentum = getattr(self, f"{name}_momentum")
            momentum.mul_(_MOMENTUM).add_(gradient)
            getattr(self, name).sub_(momentum, alpha=_RATE)
        return {"probe_loss": loss, "probe_accuracy": accuracy}

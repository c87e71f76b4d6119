"""Numbers that stopped being finite: the sign of a run that has diverged."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mmcl.runtime import distributed
from mmcl.runtime.errors import NotFiniteError


@torch.no_grad()
def require_finite_weights(module: nn.Module, device: torch.device) -> None:
    """Raise :class:`NotFiniteError` if a weight that learns is not finite; all processes call this together.

    The loss and the gradient are looked at in every step, but what the last update has made of the weights shows in
    the step after it only, which a run that ends, or a checkpoint, does not wait for.
    """
    learned = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in learned.values()]
    finite = torch.stack([weight.isfinite().all() for weight in local]).tolist() if local else []
    wrong = [name for name, sound in zip(learned, finite, strict=True) if not sound]
    if distributed.all_reduce_max(float(len(wrong)), device):
        example = f", such as {wrong[0]}" if wrong else ""
        raise NotFiniteError(f"weights became nan or infinite{example}", "weights")

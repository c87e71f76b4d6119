"""A warning when a run collapses: when everything gets the same embedding, or all embeddings lie on a line."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.evaluation.metrics.rank import spectrum_rank
from mmcl.methods import Method, Outputs
from mmcl.runtime import distributed
from mmcl.training.callbacks.base import Callback
from mmcl.training.checkpoint import Progress

log = logging.getLogger("mmcl")

# The spread is √(1 − mean cosine), 1 on a sphere that is used in full. Networks with random weights have 0.7 and more
# on the images of CIFAR-10 (ResNet, ConvNeXt, ViT in training mode); the narrowest cones in use, of a mean cosine of
# 0.9 or so, have 0.3. At 0.1 the mean cosine is 0.99.
_SPREAD = 0.1
# As of the space that an evaluator measures: on 2% of the possible directions, and on a line in any case, even a linear
# classifier of a dozen classes fails.
_FLAT, _FLAT_AT_LEAST = 0.02, 2.0
_ROWS = 256  # of a batch, which are enough to tell
_FEWEST = 16  # rows; a handful of inputs may well be alike
_TIMES = 3  # logged steps in a row, since a batch may be odd
_START = 0.1  # of the run, until which random weights may still be at work


class CollapseWarning(Callback):
    """Looks at what becomes of the views, at logged steps, and warns once when it has collapsed.

    Args:
        method: that learns.
        steps: of the run.
    """

    def __init__(self, method: Method, steps: int) -> None:
        self.method = method
        self.first = _START * steps
        self._times = 0

    def on_log(self, progress: Progress, outputs: Outputs) -> None:
        if distributed.rank() != 0 or progress.step < self.first or self._times == _TIMES:
            return
        # Of the views alone: what else a method embeds need not be vectors of a space, as the terms of masked tokens.
        views = {name: outputs.embeddings[name] for name in self.method.views() if name in outputs.embeddings}
        reasons = {name: why for name, vectors in views.items() if (why := collapse(vectors))}
        self._times = self._times + 1 if reasons else 0
        if self._times == _TIMES:
            name, why = next(iter(reasons.items()))
            log.warning(
                "step %d: the %s embeddings have collapsed, and what is learned from here on is of no use: %s. Start "
                "anew with a lower training.lr or a longer training.warmup, and look at the settings of the method",
                *(progress.step, name, why),
            )


@torch.no_grad()
def collapse(vectors: Tensor) -> str | None:
    """Why (N, D) embeddings are to be called collapsed; None if they are not, or are too few to tell."""
    if len(vectors) < _FEWEST:
        return None
    unit = F.normalize(vectors[:_ROWS].double().cpu(), dim=1)
    spread = float((1 - unit.mean(0).square().sum()).clamp(min=0).sqrt())
    if spread < _SPREAD:
        return f"their spread is {spread:.3f} of 1, below {_SPREAD}"
    products = unit @ unit.T if len(unit) < unit.shape[1] else unit.T @ unit
    rank, most = spectrum_rank(torch.linalg.eigvalsh(products).clamp(min=0).sqrt()), len(products)
    if rank < (least := max(_FLAT_AT_LEAST, _FLAT * most)):
        return f"their effective rank (RankMe) is {rank:.1f} of {most}, below {least:.1f}"
    return None

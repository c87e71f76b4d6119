"""What the methods over images alone share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.config import schema
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.views import View
from mmcl.methods.base import Context, Method, refuse_unknown_roles
from mmcl.methods.outputs import Outputs
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, first_line


class ImageOnly(Method):
    """Two random augmentations of an image, through one tower.

    Raises:
        MmclError: nothing is changed at random: both views would be the same.
    """

    def __init__(self, config: Any, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        require_augmentation(config.name, context)

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        columns = {"image": "image"}
        refuse_other_roles(config, columns)
        return columns

    def views(self) -> dict[str, View]:
        return {"image": View("image", "image", self.augment, count=2)}

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        return {name: self.encoder.embedder("image")(**inputs[name]) for name in self.views()}


def refuse_other_roles(config: schema.Config, columns: dict[str, str]) -> None:
    """Raise ``MmclError`` if the config names columns of other roles than these and ``image_2``, ``image_3``, …: more
    images of a row, which are views of it."""
    refuse_unknown_roles(config, dict.fromkeys(config.data.numbered("image"), "image") | columns)


def require_augmentation(method: str, context: Context) -> None:
    """Raise ``MmclError`` where nothing is changed at random."""
    if context.augmentation is None or not context.augmentation.changes:
        raise MmclError(
            f"method '{method}': without augmentation both views of an image are the same, with nothing to learn; set "
            "augmentation, such as {crop_scale: [0.2, 1.0], flip: 0.5}"
        )


@torch.no_grad()
def require_readable(tower: nn.Module, size: int, setting: str) -> None:
    """Raise ``MmclError``, which names ``setting``, unless the image tower reads images of ``size`` pixels."""
    training = tower.training
    try:
        tower.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # whatever a network of another input size meets
        raise MmclError(
            f"{setting}: the image tower cannot read images of {size} pixels ({first_line(error)}); choose another "
            "size or tower"
        ) from None
    finally:
        tower.train(training)


def by_view(vectors: Tensor, count: int = 2) -> Tensor:
    """(count, N, D) of (N·count, D) embeddings of a view with a count."""
    return vectors.unflatten(0, (-1, count)).transpose(0, 1)


def per_view(head: Callable[[Tensor], Tensor], vectors: Tensor, count: int = 2) -> Tensor:
    """(N·count, E) of (N·count, D) embeddings of a view with a count, each of whose draws passes through ``head`` by
    itself: batch normalisation takes the statistics of one draw of every row, not of all draws together."""
    return torch.stack([head(view) for view in by_view(vectors, count)], dim=1).flatten(0, 1)


def spread(vectors: Tensor) -> float:
    """Mean over the dimensions of the standard deviation of the unit vectors, times √D: 0 when all (N, D) have become
    one point, near 1 when they are spread over the sphere (Chen & He 2020, arXiv:2011.10566, section 4.1)."""
    unit = F.normalize(vectors.float(), dim=1)
    return unit.std(dim=0).mean().item() * unit.shape[1] ** 0.5


def both_views(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """The (N, D) embeddings of both views."""
    first, second = by_view(outputs.embeddings["image"])
    return first, second

"""What the methods over two large and several small crops of an image share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmcl.config.methods import MethodConfig
from mmcl.config.section import Range
from mmcl.data.batches.views import Augment, View
from mmcl.methods.base import Context
from mmcl.methods.image.image_only import ImageOnly, by_view, require_readable
from mmcl.models.towers import Towers
from mmcl.runtime import distributed

log = logging.getLogger("mmcl")
GLOBAL, LOCAL = "image", "local"  # views


class MultiCropConfig(MethodConfig):
    """The small crops beside the two global ones (SwAV, Caron et al. 2020, arXiv:2006.09882, section 3.2)."""

    local_crops: int = Field(default=4, ge=0)
    """Small crops beside the two global ones; 0 for none."""
    local_size: int = Field(default=96, ge=8)
    """Their side in pixels."""
    local_scale: Range = (0.05, 0.14)
    """Their area as a share of the image; that of the global ones is `augmentation.crop_scale`."""


class MultiCrop(ImageOnly):
    """Two global and several local crops of an image, through one tower.

    Raises:
        MmclError: the tower reads no images of the local crops' size.
    """

    config: Any  # a MultiCropConfig, of which each method has its own

    def __init__(self, config: Any, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        if config.local_crops:
            require_readable(encoder.image().tower, config.local_size, "method.local_size")

    def views(self) -> dict[str, View]:
        assert self.context.augmentation is not None, "refused without"
        size, count = self.config.local_size, self.config.local_crops
        local = Augment(self.context.augmentation.model_copy(update={"crop_scale": self.config.local_scale}))
        return super().views() | ({LOCAL: View("image", "image", local, size=size, count=count)} if count else {})

    def crops(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """(V, N, D) embeddings of all crops, the two global ones first."""
        counts = {name: view.count for name, view in self.views().items()}
        return torch.cat([by_view(vectors, counts[name]) for name, vectors in embeddings.items()])


def all_together(head: Callable[[Tensor], Tensor], embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``head`` makes of all views in one pass."""
    parts = list(embeddings.values())
    vectors = head(torch.cat(parts)).split([len(part) for part in parts])
    return dict(zip(embeddings, vectors, strict=True))


def warn_of_frozen(frozen: int, steps: int) -> None:
    """Warn where prototypes that stay as they are in the first ``frozen`` steps never learn in a run of ``steps``."""
    if frozen >= steps and distributed.rank() == 0:
        log.warning(
            "method.freeze_prototypes: %d, but the run has %d steps, so that the prototypes never learn; lower it",
            *(frozen, steps),
        )

"""What turns images into vectors of the shared space."""

from __future__ import annotations

from typing import ClassVar

from mmcl.data.processors.image import ImageProcessor
from mmcl.models.embedder import Embedder
from mmcl.models.heads import Head
from mmcl.models.image.tower import ImageTower


class ImageEmbedder(Embedder):
    """Embeds images: ``pixels``, as :meth:`mmcl.models.image.tower.ImageTower.forward` takes them."""

    modality: ClassVar[str] = "image"
    processor: ImageProcessor
    tower: ImageTower

    def __init__(self, processor: ImageProcessor, tower: ImageTower, head: Head, *, frozen: bool = False) -> None:
        super().__init__(processor, tower, head, frozen=frozen)

"""The tower that embeds images: a network of timm's, open_clip's or transformers', from pixels to features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmcl.data.patches import square_patches
from mmcl.data.processors.image import ImageProcessor
from mmcl.models.outputs import vector_of
from mmcl.models.tower import Tower
from mmcl.runtime.errors import MmclError


class ImageTower(Tower):
    """Pixels to features.

    Args:
        net: from normalised pixels to features.
        spec: as below.
        processor: its size is what the network is tried with, and its colours are normalised by.

    Attributes:
        spec: what rebuilds the network, weights and size apart.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, spec: dict[str, Any], processor: ImageProcessor) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.spec = spec
        self.register_buffer("mean", torch.tensor(processor.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.std).view(1, 3, 1, 1), persistent=False)
        self._patch = processor.patch
        self._vector: str | None = spec.get("vector")
        # Position embeddings that were learned at another size are interpolated, where the model can.
        native = getattr(getattr(net, "config", None), "image_size", processor.size)
        self._options = {"interpolate_pos_encoding": True} if self._vector and native != processor.size else {}
        self.width = self._measure_width(processor.size)

    def forward(
        self, pixels: Tensor | None = None, patches: Tensor | None = None, grid: Tensor | None = None
    ) -> Tensor:
        """(N, width) features of images, see :mod:`mmcl.data.batches.inputs`.

        Args:
            pixels: squares, uint8 (N, size, size, 3), or float (N, 3, size, size) in [0, 1].
            patches: of images of any shape, for a tower that keeps it.
            grid: of these patches.
        """
        if self._patch is not None:
            if pixels is not None:
                squares = pixels if pixels.dtype == torch.uint8 else pixels.permute(0, 2, 3, 1)
                patches, grid = square_patches(squares, self._patch)
            return self._read(self.net(**self._of_patches(patches, grid)))
        assert pixels is not None, "the processor makes squares"
        if pixels.dtype == torch.uint8:
            # A channels-last image permuted like this already has torch's channels_last strides: no copy.
            pixels = pixels.permute(0, 3, 1, 2).float() / 255
        return self._read(self.net((pixels - self.mean) / self.std, **self._options))

    def _of_patches(self, patches: Tensor | None, grid: Tensor | None) -> dict[str, Tensor]:
        """What SigLIP 2 takes, with as little padding as the batch needs."""
        assert patches is not None, "given where there are no squares"
        assert grid is not None, "given with patches"
        counts = grid.prod(dim=1)
        longest = int(counts.max())
        levels = patches[:, :longest].unflatten(2, (-1, 3))
        levels = levels.float() / 255 if levels.dtype == torch.uint8 else levels
        mask = torch.arange(longest, device=counts.device) < counts[:, None]
        normal = (levels - self.mean.flatten()) / self.std.flatten()
        return {"pixel_values": normal.flatten(2), "pixel_attention_mask": mask.long(), "spatial_shapes": grid}

    def _read(self, features: Any) -> Tensor:
        """The one vector an image in what a network gives."""
        if isinstance(features, Tensor):
            return features
        if self._vector is not None:
            return vector_of(features, self._vector)
        first: Tensor = features[0]
        return first

    @torch.no_grad()
    def _measure_width(self, size: int) -> int:
        """Ask the network itself: libraries disagree about the attribute that holds the width after pooling."""
        self.eval()
        try:
            shape = self(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape
        except Exception as error:  # whatever a network of another input size or channel count meets
            raise MmclError(f"image tower '{self.spec['name']}': cannot read {size}-pixel RGB: {error}") from None
        self.train()
        if len(shape) != 2:
            raise MmclError(f"image tower '{self.spec['name']}': gives {tuple(shape)}, not one vector; check its args")
        return int(shape[1])

"""The tower that embeds images: a network of timm's, open_clip's or transformers', from pixels to features."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmcl.data.images import ImageInput, PreparedImage, ResizeMode, load_pixels
from mmcl.models.outputs import vector_of
from mmcl.runtime.errors import MmclError


class ImageTower(nn.Module):
    """Pixels to features.

    Attributes:
        width: number of features.
        size: side of the square input, in pixels.
        resize: how an image becomes that square (see ``mmcl.data.images.resize``).
        exact_decoding: decode large JPEG files at their full size (see ``mmcl.data.images.decode``).
        spec: what rebuilds the tower, weights apart.
    """

    modality: ClassVar[str] = "image"
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, spec: dict[str, Any]) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.spec = spec
        self.size: int = spec["size"]
        self.resize: ResizeMode = spec["resize"]
        self.register_buffer("mean", torch.tensor(spec["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec["std"]).view(1, 3, 1, 1), persistent=False)
        self._vector: str | None = spec.get("vector")
        # Position embeddings that were learned at another size are interpolated, where the model can.
        native = getattr(getattr(net, "config", None), "image_size", self.size)
        self._options = {"interpolate_pos_encoding": True} if self._vector and native != self.size else {}
        self.width = self._measure_width()

    @property
    def exact_decoding(self) -> bool:
        return bool(self.spec.get("exact_decoding", False))

    @exact_decoding.setter
    def exact_decoding(self, exact: bool) -> None:
        self.spec["exact_decoding"] = exact

    def prepare(self, image: ImageInput | None) -> PreparedImage:
        """An image decoded and resized. Raises ``ImageError`` if it cannot be read."""
        return PreparedImage(load_pixels(image, self.size, self.resize, exact_decoding=self.exact_decoding))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, width) features of uint8 (N, size, size, 3), or of float (N, 3, size, size) in [0, 1]."""
        if pixels.dtype == torch.uint8:
            # A channels-last image permuted like this already has torch's channels_last strides: no copy.
            pixels = pixels.permute(0, 3, 1, 2).float() / 255
        features = self.net((pixels - self.mean) / self.std, **self._options)
        if isinstance(features, Tensor):
            return features
        if self._vector is not None:
            return vector_of(features, self._vector)
        return features[0]

    @torch.no_grad()
    def _measure_width(self) -> int:
        """Ask the network itself: libraries disagree about the attribute that holds the width after pooling."""
        self.eval()
        try:
            shape = self(torch.zeros(1, self.size, self.size, 3, dtype=torch.uint8)).shape
        except Exception as error:  # whatever a network of another input size or channel count meets
            raise MmclError(f"image tower '{self.spec['name']}': cannot read {self.size}-pixel RGB: {error}") from None
        self.train()
        if len(shape) != 2:
            raise MmclError(f"image tower '{self.spec['name']}': gives {tuple(shape)}, not one vector; check its args")
        return int(shape[1])

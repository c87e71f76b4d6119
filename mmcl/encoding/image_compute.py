"""Pixels to embeddings for ``encode``: in the precision asked for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import cast

import torch
from torch import Tensor

from mmcl.encoding.weights_state import weights_state
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.packed import DTYPE, PackedVision, runs_packed
from mmcl.runtime.device import multiplies_bfloat16
from mmcl.runtime.products import fast_products


class ImageCompute:
    """Embeds what an image processor made; keeps what it prepared of the weights until these change.

    In bfloat16 on a CPU open_clip's vision transformers run as :class:`PackedVision`; others, and all in float32 and on
    a GPU, as they are, under autocast.

    Args:
        embedder: of images, in evaluation mode.
        dtype: of the tower's products.
    """

    def __init__(self, embedder: ImageEmbedder, dtype: torch.dtype) -> None:
        self._embedder, self._dtype = embedder, dtype
        self._state = _state(embedder, dtype)
        device = next(embedder.tower.parameters()).device
        packed = dtype == DTYPE and multiplies_bfloat16(device) and runs_packed(embedder.tower)
        self._packed = PackedVision(embedder.tower) if packed else None

    def suits(self, embedder: ImageEmbedder, dtype: torch.dtype) -> bool:
        """Whether it still computes what ``embedder`` does: nothing trained, loaded, moved or hooked since."""
        unhooked = self._packed is None or runs_packed(embedder.tower)
        return unhooked and self._state == _state(embedder, dtype)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(N, D) embeddings, not normalised, of the inputs of the tower."""
        device = next(iter(inputs.values())).device
        with fast_products(), torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            if self._packed is None:
                return cast(Tensor, self._embedder(**inputs))
            with torch.autocast(device.type, enabled=False):
                features = self._packed(inputs["pixels"])
            return cast(Tensor, self._embedder(features=features))


def _state(embedder: ImageEmbedder, dtype: torch.dtype) -> Hashable:
    return dtype, id(embedder), id(embedder.tower.net), weights_state(embedder.tower)

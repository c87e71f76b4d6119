"""Inputs to vectors by the towers of a model, a batch at a time: what ``encode`` runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mmcl.encoding.inputs import Options, read_images
from mmcl.encoding.text_compute import TextCompute
from mmcl.encoding.text_pipeline import Embedded, chunked, embed_chunks
from mmcl.losses.unit import unit_length
from mmcl.models.image.tower import ImageTower
from mmcl.models.towers import Towers
from mmcl.runtime.device import DTYPES, ready_after_fork
from mmcl.runtime.errors import MmclError

IMAGES_A_BATCH = 64


class Compute:
    """Embeds by ``towers``; keeps what it prepared of the weights of text towers until these change."""

    def __init__(self, towers: Towers) -> None:
        self.towers = towers
        self._prepared: dict[str, TextCompute] = {}

    def forget(self) -> None:
        """Drop what was prepared of the weights."""
        self._prepared.clear()

    def texts(
        self,
        name: str,
        chunks: Iterable[Sequence[str]],
        options: Options,
        advance: Callable[[int], object] = lambda count: None,
    ) -> Iterator[Embedded]:
        """Embed chunk after chunk by the text tower ``name``; ``advance`` is called with the number of texts done."""
        embedder, dtype = self.towers.embedder(name), DTYPES[options.compute]
        if name not in self._prepared or not self._prepared[name].suits(embedder, dtype):
            self._prepared[name] = TextCompute(embedder, dtype)
        finish = partial(finished, options=options)
        compute = self._prepared[name]
        return embed_chunks(
            compute, chunks, options.prompt, texts_a_batch=options.batch_size, finish=finish, advance=advance
        )

    @torch.inference_mode()
    def images(self, name: str, images: Sequence[Any], options: Options) -> Iterator[Embedded]:
        """Embed batch after batch by the image tower ``name``."""
        embedder, device = self.towers.embedder(name), self.towers.device
        tower = cast(ImageTower, embedder.tower)
        dtype = DTYPES[options.compute]
        size = options.batch_size or IMAGES_A_BATCH
        for number, chunk in enumerate(chunked(images, size)):
            read, errors = read_images(chunk, tower, number * size, options.skip)
            pixels = torch.from_numpy(read)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                vectors = embedder(pixels=pixels.to(device))
            yield Embedded(finished(vectors, options), np.zeros(len(chunk), dtype=bool), errors)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """With the towers in evaluation mode."""
        ready_after_fork(self.towers.device)
        training = self.towers.training
        if training:
            self.towers.eval()
        try:
            yield
        finally:
            if training:
                self.towers.train()


def finished(embeddings: Tensor, options: Options) -> np.ndarray:
    """(N, ``options.dim``) float32 of (N, D) embeddings, cut and normalised as wanted.

    Raises:
        MmclError: a vector holds NaN or infinity.
    """
    vectors = embeddings.float()[:, : options.dim]
    given: np.ndarray = (unit_length(vectors) if options.normalize else vectors).cpu().numpy()
    if broken := int((~np.isfinite(given).all(axis=1)).sum()):
        raise MmclError(
            f"encode: the model gives {broken:,} of {len(given):,} inputs NaN or infinity: its weights are damaged, or "
            "too large for this precision; take another copy of the model, or dtype='float32'"
        )
    return given

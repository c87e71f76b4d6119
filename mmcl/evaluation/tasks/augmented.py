"""Several random changes of each image as vectors, for what is judged by how alike they stay."""

from __future__ import annotations

import numpy as np
import torch

from mmcl.config.data import AugmentationConfig
from mmcl.data.batches.views import Augment
from mmcl.data.images import ImageError
from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.tasks.embed_rows import report_left_out
from mmcl.runtime.progress import progress

IMAGES = 1000  # of LiDAR's paper
AUGMENTATION = AugmentationConfig(
    crop_scale=(0.2, 1.0),
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    jitter_prob=0.8,
    greyscale=0.2,
)
"""SimCLR's, as most methods over images alone are trained with, without blur."""
_BLOCK = 16  # images, each with all its views


@torch.no_grad()
def augmented_vectors(
    encoder: Encoder, rows: Rows | ShardRows, image: str, views: int, *, images: int = IMAGES, seed: int = 0
) -> np.ndarray:
    """(n, views, D) float32, not normalised, of ``AUGMENTATION`` of the square that the tower sees of each image.

    Rows with an unreadable image are left out, and their number is logged.

    Args:
        encoder: with one tower of images.
        rows: the table.
        image: its column of images.
        views: of each image.
        images: at most so many of the rows, drawn at random.
        seed: of that draw, and of the views.

    Raises:
        MmclError: there is no such column, or no readable image.
    """
    rows.require([image])
    random = np.random.default_rng(seed)
    chosen = sorted(random.permutation(len(rows))[:images].tolist())
    embedder, augment, parts = encoder.towers.image(), Augment(AUGMENTATION), []
    training = embedder.training
    embedder.eval()
    with progress("encode augmented images", len(chosen), "images") as advance:
        for start in range(0, len(chosen), _BLOCK):
            block = chosen[start : start + _BLOCK]
            given = [None if isinstance(each, ImageError) else each for each in rows.images(image, block)]
            pixels, errors = embedder.processor.prepare_many(given)
            read = np.setdiff1d(np.arange(len(block)), list(errors))
            if len(read):
                squares = {"pixels": torch.from_numpy(pixels[read]).to(encoder.device)}
                seeds = torch.from_numpy(random.integers(2**62, size=len(read))).to(encoder.device)
                drawn = [embedder(**augment(squares, seeds, view, None)).float() for view in range(views)]
                parts.append(torch.stack(drawn, dim=1).cpu().numpy())
            advance(len(block))
    embedder.train(training)
    report_left_out(rows, len(chosen) - sum(map(len, parts)), "an unreadable image", len(chosen))
    return np.concatenate(parts)

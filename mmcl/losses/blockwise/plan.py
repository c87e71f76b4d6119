"""How the caller of a loss wants its matrix of logits computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tile = int | Literal["auto"] | None
Across = Literal["gather", "ring"] | None


@dataclass(frozen=True)
class Blockwise:
    """How a matrix of logits between all queries and all keys is computed. The result does not depend on it, but for
    rounding.

    Attributes:
        tile: rows and columns of the tiles in which the matrix is computed, and computed again for the gradient, in
            O((N + K)·D) memory. None holds the matrix in memory; ``auto`` does so up to 1,024² logits. If all
            embeddings are bfloat16 and the hardware multiplies bfloat16, tiles are products of bfloat16 accumulated in
            float32: gradients of embeddings are then within 1% of their norm, at temperatures of 0.02 or less within
            3%. Tiles have no second derivative.
        across: None if the arguments of the loss are the global batch. Otherwise each process of the default group
            passes its own rows (their number may differ, or be 0), and all processes get the loss of the global batch.
            Each process computes its queries against the keys of all: ``gather`` holds all keys at once; ``ring``
            passes them around, holds those of at most two processes, and transfers the next ones during the
            computation. The backward pass gives each of W processes W times its own contribution to the gradient of
            embeddings and temperature, since data parallelism averages over processes. No effect with one process.

    >>> import torch
    >>> from mmcl.losses import info_nce
    >>> image = torch.eye(8)
    >>> info_nce(image, image, blockwise=Blockwise(tile=4)).item() < 1e-4
    True
    """

    tile: Tile = "auto"
    across: Across = None


DEFAULT = Blockwise()

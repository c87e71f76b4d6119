"""The roles of the rows, as inputs of their embedders: pixels, tokens, or cached features, with their identities."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmcl.data.identity import uniforms
from mmcl.data.pixels import Pixels
from mmcl.data.tokens import Tokens
from mmcl.models.embedder import Embedder
from mmcl.models.text_tower import TextTower
from mmcl.runtime.files import atomic_file
from mmcl.runtime.progress import progress

FEATURES_A_BATCH = 256
CAPTION_STREAM = 0xCA9  # of a row's random numbers, the one that chooses among its captions


class Column(ABC):
    """One role of the rows, as inputs of its embedder.

    A row has one or more *items* (one picture, several captions), numbered through the column.

    Attributes:
        hashes: (items,) int64 identities.
        problems: row to the reason why it cannot be used.
    """

    hashes: np.ndarray
    problems: dict[int, str]

    def choose(self, rows: np.ndarray, seeds: Tensor) -> np.ndarray:
        """One item of each row."""
        return rows

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All items of the rows, and for each the position in ``rows`` that it belongs to."""
        return rows, np.arange(len(rows))

    @abstractmethod
    def inputs(self, items: np.ndarray) -> dict[str, Tensor]:
        """The embedder's inputs for these items."""


class PixelColumn(Column):
    """Pictures: one a row."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.hashes = pixels.hashes
        self.problems = dict(pixels.errors)

    def inputs(self, items: np.ndarray) -> dict[str, Tensor]:
        return {"pixels": torch.from_numpy(self.pixels.take(items))}


class TokenColumn(Column):
    """Captions: any number a row, of which a row's seed chooses one."""

    def __init__(self, tokens: Tokens, tower: TextTower) -> None:
        self.tokens = tokens
        self.tower = tower
        self.hashes = tokens.hashes
        self.problems = dict.fromkeys(tokens.empty, "no text")

    def choose(self, rows: np.ndarray, seeds: Tensor) -> np.ndarray:
        first, counts = self.tokens.first[rows], self.tokens.first[rows + 1] - self.tokens.first[rows]
        return first + choose_caption(counts, seeds)

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        owner = np.repeat(np.arange(len(rows)), self.tokens.first[rows + 1] - self.tokens.first[rows])
        within = np.arange(len(owner)) - np.searchsorted(owner, owner)
        return self.tokens.first[rows][owner] + within, owner

    def inputs(self, items: np.ndarray) -> dict[str, Tensor]:
        return self.tower.collate(self.tokens.take(items))


class FeatureColumn(Column):
    """The features of a frozen tower, computed once for each distinct item and kept in a memory map."""

    def __init__(self, column: Column, embedder: Embedder, folder: Path, device: torch.device) -> None:
        self.column = column
        # The rows of the file are in the order of the hashes: other content, other file.
        content = hashlib.blake2b(np.ascontiguousarray(column.hashes).tobytes(), digest_size=16).hexdigest()
        path = folder / f"{embedder.tower.modality}-{content}.npy"
        self.hashes, self.problems = column.hashes, column.problems
        _, example, self._feature_of = np.unique(column.hashes, return_index=True, return_inverse=True)
        if not path.is_file():
            self._compute(example, embedder, path, device)
        self.features = np.load(path, mmap_mode="r")

    def choose(self, rows: np.ndarray, seeds: Tensor) -> np.ndarray:
        return self.column.choose(rows, seeds)

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.column.items(rows)

    def inputs(self, items: np.ndarray) -> dict[str, Tensor]:
        return {"features": torch.from_numpy(self.features[self._feature_of[items]])}

    @torch.inference_mode()
    def _compute(self, items: np.ndarray, embedder: Embedder, path: Path, device: torch.device) -> None:
        tower = embedder.tower
        with atomic_file(path) as beside, progress(f"{tower.modality} features", len(items)) as advance:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(items), tower.width)}
            # Written rather than mapped: a disk that fills up under a map kills the process.
            with beside.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(items), FEATURES_A_BATCH):
                    chunk = items[start : start + FEATURES_A_BATCH]
                    inputs = {name: tensor.to(device) for name, tensor in self.column.inputs(chunk).items()}
                    file.write(tower(**inputs).float().cpu().numpy().tobytes())
                    advance(len(chunk))


def choose_caption(counts: np.ndarray, seeds: Tensor) -> np.ndarray:
    """For rows with ``counts`` captions each, the number of the one that the row's seed chooses: int64 (N,)."""
    if counts.max(initial=1) == 1:
        return np.zeros(len(counts), dtype=np.int64)
    draw = uniforms(seeds, 1, CAPTION_STREAM)[:, 0].numpy()
    return (draw * counts).astype(np.int64)

"""From rows to batches: pixels or tokens or cached features, with the identity of everything."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mmcl.config.schema import Config
from mmcl.data.identity import mix, uniforms
from mmcl.data.pixels import Pixels, open_pixels
from mmcl.data.rows import Rows
from mmcl.data.tokens import Tokens, open_tokens
from mmcl.methods import Batch
from mmcl.models.embedder import Embedder
from mmcl.models.encoder import Encoder
from mmcl.models.image_tower import ImageTower
from mmcl.models.text_tower import TextTower
from mmcl.runtime import distributed
from mmcl.runtime.files import atomic_file
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")
T = TypeVar("T")
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
        if counts.max(initial=1) == 1:
            return first
        draw = uniforms(seeds, 1, CAPTION_STREAM)[:, 0].numpy()
        return first + (draw * counts).astype(np.int64)

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


class Feed:
    """The rows of one source, ready to be batched.

    Args:
        rows: the source.
        roles: role to modality, as a method declares them.
        config: of the run.
        encoder: its towers say what their inputs are.
        scratch: folder for the features of frozen towers.
        extra: role to the number of further items beside every global batch.
        augmented: whether pictures are changed at random, so that their features cannot be kept.
        device: where frozen towers run.
    """

    def __init__(
        self,
        rows: Rows,
        roles: dict[str, str],
        config: Config,
        encoder: Encoder,
        scratch: Path,
        *,
        extra: dict[str, int],
        augmented: bool,
        device: torch.device,
        show_progress: bool | None = None,
    ) -> None:
        self.rows = rows
        self.seed = config.seed
        self.columns: dict[str, Column] = {}
        names = {role: config.data.columns.get(role, role) for role in roles}
        rows.require(names.values())
        for role, modality in roles.items():
            embedder = encoder.embedder(modality)
            column = self._open(rows, names[role], embedder, config, show_progress)
            if embedder.frozen and not (modality == "image" and augmented):
                column = FeatureColumn(column, embedder, scratch, device)
            self.columns[role] = column
        problems = {row for column in self.columns.values() for row in column.problems}
        self.positions = np.setdiff1d(np.arange(len(rows)), np.fromiter(problems, dtype=np.int64, count=len(problems)))
        self._pools = {role: self._distinct(role) for role in extra}
        self._extra = {role: min(count, len(self._pools[role][0])) for role, count in extra.items()}

    @property
    def extra_count(self) -> int:
        """Further items beside a global batch."""
        return sum(self._extra.values())

    def _distinct(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """One item of each content among the usable rows, and its identities (M, K) as a batch has them."""
        items, owner = self.columns[role].items(self.positions)
        _, first = np.unique(self.columns[role].hashes[items], return_index=True)
        items, rows = items[first], self.positions[owner[first]]
        seeds = torch.zeros(len(rows), dtype=torch.int64)
        ids = [
            column.hashes[items if name == role else column.choose(rows, seeds)]
            for name, column in self.columns.items()
        ]
        return items, np.stack(ids, axis=1)

    @staticmethod
    def _open(rows: Rows, name: str, embedder: Embedder, config: Config, show_progress: bool | None) -> Column:
        tower, data = embedder.tower, config.data
        if isinstance(tower, ImageTower):
            pixels = open_pixels(
                rows,
                name,
                size=tower.size,
                resize=tower.resize,
                on_error=data.on_error,
                cache_gb=data.cache_gb,
                show_progress=show_progress,
            )
            return PixelColumn(pixels)
        tokens = open_tokens(
            rows,
            name,
            tower.tokenize,
            tokenizer_key=tower.key(),
            on_error=data.on_error,
            show_progress=show_progress,
        )
        return TokenColumn(tokens, tower)

    def problems(self) -> list[dict[str, str]]:
        """The rows left out: id, role and reason, in order."""
        found = sorted((row, role, why) for role, c in self.columns.items() for row, why in c.problems.items())
        ids = self.rows.select([row for row, _, _ in found]).ids() if found else []
        return [{"id": name, "role": role, "reason": why} for name, (_, role, why) in zip(ids, found, strict=True)]

    def batch(self, rows: np.ndarray, number: int, epoch: int) -> Batch:
        """The batch of these rows as ``epoch`` sees them; ``number`` is that of the global batch in the run."""
        positions = torch.from_numpy(np.ascontiguousarray(rows))
        seeds = mix(positions, self.seed, epoch)
        inputs, ids = {}, []
        for role, column in self.columns.items():
            items = column.choose(rows, seeds)
            inputs[role] = column.inputs(items)
            ids.append(torch.from_numpy(np.asarray(column.hashes[items])))
        batch = Batch(inputs, torch.stack(ids, dim=1), seeds, positions)
        for role, count in self._extra.items():
            pool, pool_ids = self._pools[role]
            drawn = np.random.default_rng([self.seed, number]).permutation(len(pool))[:count]
            world = distributed.world_size()
            mine = drawn[: count // world * world].reshape(world, -1)[distributed.rank()]
            batch.extra[role] = self.columns[role].inputs(pool[mine])
            batch.extra_ids[role] = torch.from_numpy(pool_ids[mine])
        return batch


def prefetch(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, prepared ``depth`` ahead on a thread while the consumer computes."""
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:  # handed over: the consumer raises it
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()

"""Inputs to vectors by the towers of a model, a batch at a time: what ``encode`` runs in this process."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.data.batches.inputs import TableInputs, table_inputs, text_inputs
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import TableProcessor
from mmcl.encoding.image_compute import ImageCompute
from mmcl.encoding.inputs import Options, read_images
from mmcl.encoding.text_compute import TextCompute
from mmcl.encoding.text_pipeline import CHUNK, Embedded, chunked, embed_chunks
from mmcl.encoding.workers import embed_in_workers
from mmcl.formats.open import open_model
from mmcl.losses.logits.similarity import unit_length
from mmcl.models.embedder import Embedder
from mmcl.models.table.embedder import TableEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.device import DTYPES, Devices, pick_devices, ready_after_fork, resolve_precision
from mmcl.runtime.errors import MmclError
from mmcl.runtime.prefetch import prefetch
from mmcl.runtime.products import fast_products

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""What ``encode`` computes in."""
IMAGES_A_BATCH = 64
ROWS_A_BATCH = 1024
log = logging.getLogger("mmcl")


class Compute:
    """Embeds by ``towers``; keeps what it prepared of their weights until these change."""

    def __init__(self, towers: Towers) -> None:
        self.towers = towers
        self._prepared: dict[str, TextCompute] = {}
        self._prepared_images: dict[str, ImageCompute] = {}

    def forget(self) -> None:
        """Drop what was prepared of the weights."""
        self._prepared.clear()
        self._prepared_images.clear()

    def texts(
        self,
        name: str,
        chunks: Iterable[Sequence[str]],
        options: Options,
        advance: Callable[[int], object] = lambda count: None,
    ) -> Iterator[Embedded]:
        """Embed chunk after chunk by the text tower ``name``; ``advance`` is called with the number of texts done."""
        embedder, dtype = self.towers.text(name), COMPUTE_DTYPES[options.compute]
        if name not in self._prepared or not self._prepared[name].suits(embedder, dtype):
            self._prepared[name] = TextCompute(embedder, dtype)
        finish = partial(finished, options=options)
        compute = self._prepared[name]
        return embed_chunks(
            compute, chunks, options.prompt, texts_a_batch=options.batch_size, finish=finish, advance=advance
        )

    @torch.inference_mode()
    def images(self, name: str, images: Sequence[Any], options: Options) -> Iterator[Embedded]:
        """Embed batch after batch by the image tower ``name``; later ones are read and decoded meanwhile."""
        embedder, device = self.towers.image(name), self.towers.device
        dtype = _without_int8(options.compute, device)
        if name not in self._prepared_images or not self._prepared_images[name].suits(embedder, dtype):
            self._prepared_images[name] = ImageCompute(embedder, dtype)
        compute, size = self._prepared_images[name], options.batch_size or IMAGES_A_BATCH
        read = (
            (len(chunk), *read_images(chunk, embedder.processor, number * size, options.skip))
            for number, chunk in enumerate(chunked(images, size))
        )
        with closing(prefetch(read)) as batches:
            for count, inputs, errors in batches:
                inputs = {key: tensor.to(device) for key, tensor in inputs.items()}
                yield Embedded(finished(compute(inputs), options), np.zeros(count, dtype=bool), errors)

    @torch.inference_mode()
    def tables(self, name: str, rows: Sequence[Mapping[str, Any]], options: Options) -> Iterator[Embedded]:
        """Embed batch after batch of rows by the table tower ``name``."""
        embedder, device = self.towers.embedder(name), self.towers.device
        dtype = _without_int8(options.compute, device)
        assert isinstance(embedder, TableEmbedder), "the caller looks"
        unknown = Counter[str]()
        for chunk in chunked(rows, options.batch_size or ROWS_A_BATCH):
            read = read_rows(embedder.processor, chunk, options.skip)
            unknown.update(read.unknown)
            tensors = {key: tensor.to(device) for key, tensor in read.tensors.items()}
            with fast_products(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                vectors = embedder(**tensors)
            yield Embedded(finished(vectors, options), np.zeros(len(chunk), dtype=bool), read.unreadable)
        for column, count in unknown.items():
            log.warning("%d values in column '%s' are not known from training, and count as missing", count, column)

    def _batches(self, name: str, items: Sequence[Any], options: Options) -> Iterator[Embedded]:
        """Embed images or rows by their tower."""
        return (self.images if self.towers.modality(name) == "image" else self.tables)(name, items, options)

    def elsewhere(self, devices: Devices | None) -> list[torch.device]:
        """The devices of worker processes; none where this process will do."""
        chosen = [] if devices is None else pick_devices(devices)
        return [] if chosen == [self.towers.device] else chosen

    def stream(
        self, name: str, chunks: Iterable[list[Any]], options: Options, devices: list[torch.device]
    ) -> Iterator[Embedded]:
        """Embed chunk after chunk of inputs of one kind, here or in workers on ``devices``."""
        with self.evaluating():
            if devices:
                yield from embed_in_workers(self.towers, name, embeds_in, chunks, devices, options)
            elif self.towers.modality(name) == "text":
                yield from self.texts(name, chunks, options)
            else:
                yield from (_joined(self._batches(name, chunk, options)) for chunk in chunks)

    def some(
        self,
        items: Sequence[Any],
        towers: Sequence[str],
        wanted: Sequence[int],
        options: Options,
        devices: list[torch.device],
        advance: Callable[[int], object],
    ) -> Iterator[tuple[np.ndarray, Embedded]]:
        """Some of the ``wanted`` places in ``items`` after the other, with what is embedded of them.

        Args:
            items: inputs.
            towers: name of the tower of each.
            wanted: places in ``items``.
            options: what is wanted of them.
            devices: of worker processes; none for this process.
            advance: called with the number of inputs done since.
        """
        with self.evaluating():
            for name in dict.fromkeys(towers):
                places = np.array([place for place in wanted if towers[place] == name])
                mine = [items[place] for place in places]
                texts = self.towers.modality(name) == "text"
                parts: Iterable[Embedded]
                if devices:
                    size = max(1, min(CHUNK, -(-len(mine) // (4 * len(devices)))))
                    parts = embed_in_workers(self.towers, name, embeds_in, chunked(mine, size), devices, options)
                elif texts:
                    parts = self.texts(name, chunked(mine, CHUNK), options, advance)
                else:
                    parts = self._batches(name, mine, options)
                start = 0
                for part in parts:
                    end = start + len(part.cut)
                    yield places[start:end], part
                    if devices or not texts:
                        advance(end - start)
                    start = end

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


def _without_int8(compute: str, device: torch.device) -> torch.dtype:
    """What a tower computes in that has no form in 8-bit integers: instead of int8, what ``auto`` takes."""
    return DTYPES[resolve_precision("auto" if compute == "int8" else compute, device)]


def embeds_in(folder: str, device: str, name: str, options: Options) -> Callable[[list[Any]], Embedded]:
    """What embeds a list of inputs by the tower ``name`` of the model in ``folder``, on ``device``."""
    compute = Compute(open_model(folder).to(torch.device(device)))
    texts = compute.towers.modality(name) == "text"

    def embeds(inputs: list[Any]) -> Embedded:
        return _joined(compute.texts(name, [inputs], options) if texts else compute._batches(name, inputs, options))

    return embeds


def _joined(parts: Iterable[Embedded]) -> Embedded:
    vectors, cut, _ = zip(*parts, strict=True)
    return Embedded(np.concatenate(vectors), np.concatenate(cut))


def tower_inputs(embedder: Embedder, items: Sequence[Any], prompt: str | None) -> tuple[dict[str, Tensor], int]:
    """What ``embedder`` reads of inputs of its modality, and how many texts were cut."""
    processor = embedder.processor
    if isinstance(processor, ImageProcessor):
        return read_images(items, processor, 0)[0], 0
    if isinstance(processor, TableProcessor):
        return read_rows(processor, items).tensors, 0
    tokens, cut = processor.tokenize(items, prompt)
    return text_inputs(processor, tokens, processor.skipped(prompt)), cut


def read_rows(processor: TableProcessor, rows: Sequence[Mapping[str, Any]], skip: bool = False) -> TableInputs:
    """What a table tower reads of rows.

    Raises:
        MmclError: no row has one of the columns, a value is of no kind that a column can hold, or an image cannot be
            read, unless such rows are to be skipped.
    """
    for column in processor.columns:
        if rows and not any(column in row for row in rows):
            raise MmclError(
                f"encode: no row has '{column}'; the tower reads {', '.join(processor.columns)} (None for what is not "
                "known)"
            )
    try:
        read = table_inputs(processor, rows)
    except ValueError as error:
        raise MmclError(f"encode: {error}") from None
    if read.unreadable and not skip:
        place, reason = next(iter(read.unreadable.items()))
        raise MmclError(f"encode: row {place}, {reason}")
    return read


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

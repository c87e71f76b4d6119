"""Batches of WebDataset tar shards, read as a stream that goes on exactly where it stopped."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mmcl.config.data import SourceConfig
from mmcl.config.schema import Config
from mmcl.data.augment.texts import TextAugmentation
from mmcl.data.batches.batch import Batch, Inputs
from mmcl.data.batches.columns import ValueColumn
from mmcl.data.batches.inputs import image_inputs, text_inputs
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.text_reader import TextReader
from mmcl.data.batches.views import VALUES
from mmcl.data.batches.workers import by_workers
from mmcl.data.identity import NOTHING, mix, stable_hash
from mmcl.data.images import ImageInput, PreparedImage, image_hash
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import TableProcessor
from mmcl.data.row_items import choose_caption
from mmcl.data.sources.tar.columns import NoTextError, ShardColumn, log_lacking, require_columns
from mmcl.data.sources.tar.pools import Pools
from mmcl.data.sources.tar.read import Sample
from mmcl.data.sources.tar.stream import Mixture, Order, ShardIterator
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.runtime.prefetch import prefetch


class StreamFeed:
    """Samples of tar shards, ready to be batched: a :class:`~mmcl.data.batches.feed.Feed`, whose arguments are
    explained at :func:`~mmcl.data.batches.feed.open_feed`.

    Every epoch deals all shards anew, disjointly, to the workers of all processes, and each worker cuts its batches
    from one stream that runs on from epoch to epoch: nothing is dropped. Batch ``n`` of a process is made by its worker
    ``n % workers``. What a batch holds therefore depends on the number of processes and workers.

    Without weights the shards of all sources are one pool, and each sample comes once in an epoch. With weights, or
    where each batch has samples of one source alone, every source runs through its own epochs. The features of frozen
    towers and of references are not kept: they run in every step.
    """

    extra_count = 0

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        reading: Reading,
        config: Config,
        scratch: Path | None,
        *,
        augmented: bool,
        device: torch.device,
        show_progress: bool | None = None,
    ) -> None:
        _refuse(sources[0].source, reading, config)
        self._one_source = config.data.batches == "one_source"
        self._pools = Pools(sources, apart=self._one_source)
        self.name = self._pools.name
        self.config = config
        self._pin = device.type == "cuda"
        self._stand = {"rank": distributed.rank(), "world": distributed.world_size()}
        self.workers = max(1, config.data.workers)
        changed = augmented and config.augments("text")
        augmentation = TextAugmentation(config.text_augmentation) if changed else None
        self._columns = [
            _column(role, of, sources[0], reading, config, augmentation, augmented)
            for role, of in reading.columns.items()
        ]
        self._references: list[tuple[str, _Column]] = [
            (name, _reference(column, encoder.embedder(reading.columns[column.source.role]).processor))
            for name, encoder in (reading.references if augmented else {}).items()
            for column in self._columns
            if not isinstance(column, _Values)
        ]
        self._draws_of = {role: reading.draws(role) for role, of in reading.columns.items() if changed and of == "text"}
        needed = [column.source for column in self._columns if column.source.role not in reading.optional]
        spare = [column.source for column in self._columns if column.source.role in reading.optional]
        for shards in self._pools.listed:
            require_columns(shards, needed)
        for column in spare if distributed.rank() == 0 else ():
            log_lacking(self._pools.listed, column)
        self._share = self._check_slots()
        self.samples = self._pools.count(show_progress)

    def __len__(self) -> int:
        """Batches of an epoch: the nearest number, at least 1."""
        return max(1, round(self.samples / self.config.training.batch_size))

    @property
    def fingerprint(self) -> str:
        """Changes when the shards do, as far as their names and, of local ones, their sizes tell."""
        return self._pools.fingerprint

    def identities(self, role: str) -> np.ndarray:
        raise MmclError(f"{self.name}: a stream cannot be counted; set method.frequency.source to batches")

    def problems(self) -> list[dict[str, str]]:
        """None: they come with the batches."""
        return []

    @property
    def longest_texts(self) -> dict[str, int]:
        """Tokens that a text of each role can have."""
        texts = [column for column in self._columns if isinstance(column, _Texts)]
        return {column.source.role: column.reader.processor.max_tokens for column in texts}

    def names(self, batch: Batch) -> list[str]:
        """Shard and key of a batch's samples."""
        return batch.names or []

    def batches(self, start: int, stop: int, position: Any = None) -> Generator[Batch, None, None]:
        """This process's share of the global batches from ``start`` up to ``stop``.

        ``position`` is that of the batch before ``start``; its ``problems`` are those met since the batch before.

        Raises:
            MmclError: the position is one of another number of processes or workers; a pass has no sample that
                can be used; or one cannot and ``data.on_error`` is ``fail``.
            ValueError: ``start`` is not 0 and there is no position.
        """
        if start and position is None:
            raise ValueError(f"a stream cannot jump to batch {start}; it needs the position of the batch before")
        places = [None] * self.workers if position is None else self._places(position)
        data, maker, numbers = self.config.data, _Maker(self, list(places), start), range(start, stop)
        made: Iterator[Batch] = map(maker, numbers)
        if data.workers:
            made = by_workers(maker, numbers, data.workers, data.prefetch, maker.in_worker)
        if self._pin:
            made = map(Batch.pin_memory, made)
        return self._placed(prefetch(made, data.prefetch), places, start)

    def _placed(
        self, made: Generator[Batch, None, None], places: list[Any], start: int
    ) -> Generator[Batch, None, None]:
        """The batches, each with the places of all workers after it, of which it knows its own worker's."""
        with closing(made):
            for number, batch in enumerate(made, start):
                places[number % self.workers] = batch.position
                batch.position = {**self._stand, "workers": list(places)}
                yield batch

    def _places(self, position: dict[str, Any]) -> list[Any]:
        places = list(position["workers"])
        if position | self._stand != position or len(places) != self.workers:
            raise MmclError(
                f"{self.name}: the run to go on with stopped as process {position['rank']} of {position['world']} with "
                f"{len(places)} workers, and this is process {self._stand['rank']} of {self._stand['world']} with "
                f"{self.workers}; launch it as it was"
            )
        return places

    def _check_slots(self) -> int:
        """This process's share of a batch, and a worker's of the shards: there must be one for everybody."""
        world, batch = self._stand["world"], self.config.training.batch_size
        if batch % world:
            raise MmclError(f"training.batch_size {batch} cannot be divided evenly over {world} processes")
        self._pools.require_shares(world, self.workers)
        return batch // world

    def stream(self, worker: int, place: dict[str, Any] | None) -> Mixture[list[Any]]:
        """What a worker of this process reads, from ``place`` on."""
        rank, world = self._stand["rank"], self._stand["world"]
        order = Order(
            self.config.seed,
            slot=worker * world + rank,
            slots=world * self.workers,
            block=self.config.data.shuffle,
        )
        place = place or {"drawn": 0, "walks": [None] * len(self._pools.shards)}
        iterators = [
            ShardIterator(
                pool,
                self._load,
                order,
                pool=number,
                wanted={extension for column in self._columns for extension in column.source.files},
                fail=self.config.data.on_error == "fail",
                cursor=place["walks"][number],
            )
            for number, pool in enumerate(self._pools.shards)
        ]
        return Mixture(iterators, self._pools.weights, order, place["drawn"])

    def _load(self, sample: Sample) -> list[Any]:
        return [column.load(sample) for column in (*self._columns, *(column for _, column in self._references))]

    def batch(self, stream: Mixture[list[Any]], number: int) -> Batch:
        """Batch ``number``, the next of its worker's stream, with the stream's place after it as ``position``."""
        pool = stream.pool_of(number) if self._one_source else None
        samples, loaded, epochs = zip(*(stream.next(pool) for _ in range(self._share)), strict=True)
        names = [sample.name for sample in samples]
        seeds = mix(torch.tensor([stable_hash(name) for name in names]), self.config.seed, torch.tensor(epochs))
        first = number * self.config.training.batch_size + self._stand["rank"] * self._share
        inputs: dict[str, Inputs] = {}
        draws: dict[str, list[Inputs]] = {}
        ids: list[Tensor] = []
        of_columns = list(zip(*loaded, strict=True))
        for column, items in zip(self._columns, of_columns, strict=False):
            role = column.source.role
            chosen = column.choose(items, seeds)
            inputs[role] = column.inputs(chosen, seeds)
            if (count := self._draws_of.get(role, 1)) > 1:
                draws[role] = [column.inputs(chosen, mix(seeds, draw)) for draw in range(1, count)]
            if (hashes := column.hashes(chosen)) is not None:
                ids.append(torch.tensor(hashes))
        references: dict[str, dict[str, Inputs]] = {}
        for (name, column), items in zip(self._references, of_columns[len(self._columns) :], strict=True):
            references.setdefault(name, {})[column.source.role] = column.inputs(column.choose(items, seeds), seeds)
        return Batch(
            inputs,
            torch.stack(ids, dim=1),
            seeds,
            rows=torch.arange(first, first + self._share),
            draws=draws,
            references=references,
            names=names,
            position=stream.position,
            problems=stream.take_problems(),
        )


class _Column(ABC):
    """One role of the samples, as inputs of its embedder."""

    def __init__(self, source: ShardColumn) -> None:
        self.source = source

    @abstractmethod
    def load(self, sample: Sample) -> Any:
        """What the role is in a sample. Raises ``SampleError`` if it cannot be used."""

    def choose(self, items: Sequence[Any], seeds: Tensor) -> Any:
        """One thing of each item, as the other two take them."""
        return items

    @abstractmethod
    def inputs(self, chosen: Any, seeds: Tensor) -> dict[str, Tensor]:
        """The inputs of a batch."""

    @abstractmethod
    def hashes(self, chosen: Any) -> list[int] | None:
        """The identities, as a table's would be; None of what has none."""


class _Images(_Column):
    """Images as the tower sees them; or, with ``stored``, originals of at most so many pixels."""

    def __init__(self, source: ShardColumn, processor: ImageProcessor, stored: int | None) -> None:
        super().__init__(source)
        self.processor = processor
        self.stored = stored

    def load(self, sample: Sample) -> np.ndarray:
        return self.source.image(sample, self.processor.prepare if self.stored is None else self._original)

    def inputs(self, chosen: Sequence[np.ndarray], seeds: Tensor) -> dict[str, Tensor]:
        return self.processor.collate(chosen) if self.stored is None else image_inputs(chosen)

    def _original(self, image: ImageInput) -> PreparedImage:
        assert self.stored is not None, "the caller looks"
        return self.processor.original(image, self.stored)

    def hashes(self, chosen: Sequence[np.ndarray]) -> list[int]:
        return [image_hash(item) for item in chosen]


class _Chosen(NamedTuple):
    """Texts, and their tokens as they stand."""

    texts: list[str]
    tokens: list[np.ndarray]
    there: list[bool]
    """Of a sample without a text, an empty one stands in for it."""


class _Texts(_Column):
    """Any number of texts a sample, of which its seed chooses one, and changes it where an augmentation is given."""

    def __init__(
        self, source: ShardColumn, reader: TextReader, augmentation: TextAugmentation | None, optional: bool
    ) -> None:
        super().__init__(source)
        self.reader = reader
        self.augmentation = augmentation
        self.optional = optional

    def load(self, sample: Sample) -> list[str]:
        try:
            return self.source.captions(sample)
        except NoTextError:
            if not self.optional:
                raise
            return []

    def choose(self, items: Sequence[list[str]], seeds: Tensor) -> _Chosen:
        chosen = choose_caption(np.array([len(texts) for texts in items]), seeds)
        texts = [texts[number] if texts else "" for texts, number in zip(items, chosen, strict=True)]
        return _Chosen(texts, self.reader.tokenize(texts)[0], [bool(texts) for texts in items])

    def inputs(self, chosen: _Chosen, seeds: Tensor) -> dict[str, Tensor]:
        reader, tokens = self.reader, chosen.tokens
        if self.augmentation is not None:
            tokens = self.augmentation(tokens, seeds, reader.framing, lambda: chosen.texts, reader.tokenize)
        return text_inputs(reader.processor, tokens, reader.skipped)

    def hashes(self, chosen: _Chosen) -> list[int]:
        names = self.reader.identities(chosen.texts, chosen.tokens)
        hashes: list[int] = np.where(chosen.there, names, NOTHING).tolist()
        return hashes


class _Values(_Column):
    """Labels or numbers, each batch as a :class:`~mmcl.data.batches.columns.ValueColumn` of its samples."""

    def __init__(self, source: ShardColumn, modality: str) -> None:
        super().__init__(source)
        self.modality = modality

    def load(self, sample: Sample) -> float | str:
        return self.source.label(sample) if self.modality == "label" else self.source.number(sample)

    def inputs(self, chosen: Sequence[Any], seeds: Tensor) -> dict[str, Tensor]:
        return ValueColumn(self.modality, [chosen]).inputs(slice(None))

    def hashes(self, chosen: Sequence[Any]) -> None:
        return None


def _column(
    role: str,
    modality: str,
    settings: SourceConfig,
    reading: Reading,
    config: Config,
    augmentation: TextAugmentation | None,
    augmented: bool,
) -> _Column:
    source = ShardColumn(role, modality, settings.columns.get(role, config.data.columns.get(role)))
    if modality in VALUES:
        return _Values(source, modality)
    processor = reading.embedder(role).processor
    if isinstance(processor, TableProcessor):
        raise MmclError(f"{settings.source}: a tower of modality table needs rows of tables, not a stream")
    if isinstance(processor, ImageProcessor):
        return _Images(source, processor, reading.stored_side(role, config.data.image.stored) if augmented else None)
    prompt = getattr(settings, "prompts", {}).get(role, config.data.prompts.get(role))
    if augmentation is not None:
        augmentation = augmentation.on_stream(reading.text_stream(role))
    return _Texts(source, TextReader(processor, prompt, f"data.prompts.{role}"), augmentation, role in reading.optional)


def _reference(column: _Column, processor: Any) -> _Column:
    """The items of a column as another model reads them, unaugmented; texts behind its prompt of the same name, if it
    has one."""
    if not isinstance(column, _Texts):
        return _Images(column.source, processor, None)
    prompt = column.reader.prompt if column.reader.prompt in processor.prompts else None
    return _Texts(column.source, TextReader(processor, prompt), None, column.optional)


@dataclass
class _Maker:
    """Makes this process's batches, from ``start`` on: all of them, or in a worker process that worker's."""

    feed: StreamFeed
    places: list[Any]
    start: int
    streams: dict[int, Mixture[list[Any]]] = field(default_factory=dict)

    def __call__(self, number: int) -> Batch:
        worker, process = number % self.feed.workers, get_worker_info()
        # The loader deals out batches in turn, from its process 0 on, so that a worker's stream is all in one process.
        assert process is None or (number - self.start) % self.feed.workers == process.id
        if worker not in self.streams:
            self.streams[worker] = self.feed.stream(worker, self.places[worker])
        return self.feed.batch(self.streams[worker], number)

    def in_worker(self) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # which does not survive a fork, and says so


def _refuse(name: str, reading: Reading, config: Config) -> None:
    """Raise ``MmclError`` for what needs all rows at hand."""
    if reading.extra:
        raise MmclError(f"{name}: extra texts beside a batch need a table; set method.extra_texts to 0")
    if config.data.mining is not None:
        raise MmclError(f"{name}: mining needs tables, whose rows are all at hand; leave out data.mining")
    for setting in ("per_label", "explode"):
        if getattr(config.data, setting) is not None:
            raise MmclError(f"{name}: data.{setting} needs a table, of which all rows are known; leave it out")
    for role, modality in reading.columns.items():
        if modality == "image" and (more := config.data.numbered(role)[1:]):
            raise MmclError(f"{name}: a sample of tar shards has one image; leave data.columns.{more[0]} out")
    if config.data.distinct:
        raise MmclError(
            f"{name}: distinct batches need a table, of which all rows are known; set data.distinct to false "
            "(rows that share an item are no negatives of each other in any case)"
        )

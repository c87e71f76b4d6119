"""Hard negatives that the model finds for itself, anew every so many steps, while it learns."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mmcl.config.schema import Config
from mmcl.data.batches.columns import Column
from mmcl.data.batches.feed import Feed
from mmcl.data.batches.table_feed import HardNegatives, TableFeed
from mmcl.data.identity import mix
from mmcl.encoding.shares import embed, from_shares, share_of
from mmcl.formats.open import open_model
from mmcl.methods import Method
from mmcl.models.towers import Towers
from mmcl.retrieval import Index
from mmcl.retrieval.mining import GuideVectors, KnownPositives, Mined, Rules, mine
from mmcl.runtime import distributed
from mmcl.runtime.device import DTYPES
from mmcl.runtime.errors import MmclError, NotFiniteError
from mmcl.runtime.files import atomic_file
from mmcl.runtime.progress import log_progress
from mmcl.training.callbacks.base import Callback
from mmcl.training.checkpoint import Progress

log = logging.getLogger("mmcl")
ANCHORS_AT_ONCE = 256  # beside them their nearest items, times the guide's dimensions, are in memory
ROWS_A_GROUP = 65_536  # of the file of what was mined
SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "anchor": pa.string(),
        "negative": pa.string(),
        "item": pa.int64(),
        "positive_score": pa.float32(),
        "score": pa.float32(),
        "rank": pa.int64(),
    }
)


class Miner(Callback):
    """Finds hard negatives for the rows of a feed, by the weights as they are, and has its batches carry them.

    The corpus are the distinct items of the second of the method's ``mining_roles``; each row of the feed is an anchor.
    A row's anchor is its first item of the first role (the others count as the same thing). Embeddings are those of the
    encoder, without a head for training, dropout and augmentation, and not of the average of the weights. Where a row
    has too few items that pass, random ones fill up.

    What is mined for a row is a negative of the other rows of its batch as well, where it counts as a positive that
    came with them: its identities are those of the first row that it stands in. It is left out for a row that shares
    one of these, but not for one whose anchor it is paired with in other rows alone; of partners outside of the batch
    the losses know no more of ordinary negatives.

    What is mined before step s is in every batch of the steps from s up to the next mining, and in no other: a feed is
    asked for batches up to there only. It is written to ``mined/step-XXXXXXXX.parquet`` in the run folder: ``row`` (its
    number in the feed), ``anchor`` and ``negative`` (ids of the rows where the two stand; of a negative in several, the
    first), ``item`` (the negative's place in the corpus), ``positive_score``, ``score``, and ``rank`` (-1: random). A
    resumed run goes on with that file.

    Args:
        feed: the training rows.
        method: on its device.
        config: of the run, with a section ``data.mining``.
        folder: of the run.
        precision: of the towers, as in training.
        steps: of the run.

    Raises:
        MmclError: the first mining comes after the last step, the guide does not fit, or a row shares its things with
            so many that too few negatives are left.
    """

    def __init__(self, feed: Feed, method: Method, config: Config, folder: Path, precision: str, steps: int) -> None:
        assert isinstance(feed, TableFeed), "a stream refuses to be mined"
        assert config.data.mining is not None, "the caller looks"
        assert method.mining_roles is not None, "a method refuses what it cannot use"
        self.settings = config.data.mining
        if self.settings.start >= steps:
            raise MmclError(
                f"data.mining.start: {self.settings.start}, but the run has {steps} steps, so that nothing would be "
                "mined; lower it, or raise training.epochs"
            )
        self.rules = Rules(**{name: getattr(self.settings, name) for name in Rules.__dataclass_fields__})
        self.feed, self.method, self.precision = feed, method, precision
        self.folder, self.seed = folder / "mined", config.seed
        self.roles = method.mining_roles
        self._warned = False

        anchors, positives = (feed.columns[role] for role in self.roles)
        items, owner = anchors.items(feed.positions)
        self._anchors = items[np.unique(owner, return_index=True)[1]]
        self._corpus, self._ids, self._stands_in = feed.distinct(self.roles[1])
        known = anchors.hashes[items], positives.hashes[self._corpus]
        others, of = positives.items(feed.positions)
        self._known = KnownPositives((owner, known[0]), (of, positives.hashes[others]), known[1], len(feed.positions))
        self._require_enough()
        self._guide_model = self._open_guide(self.settings.guide) if self.settings.guide else None

    def due(self, step: int) -> bool:
        """Whether to mine before step ``step`` (from 0)."""
        since = step - self.settings.start
        return since == 0 or (since > 0 and self.settings.every is not None and since % self.settings.every == 0)

    def on_setup(self, progress: Progress) -> None:
        self.restore(progress.step)

    def before_batches(self, step: int) -> None:
        """Mine, if it is due: no batch is prepared before what it is to carry has been mined."""
        if self.due(step):
            self.refresh(step)

    def prepare_until(self, step: int, stop: int) -> int:
        """The first step after ``step`` before which to mine, at most ``stop``."""
        start, every = self.settings.start, self.settings.every
        if step < start:
            return min(start, stop)
        return stop if every is None else min(stop, start + ((step - start) // every + 1) * every)

    def path(self, step: int) -> Path:
        """Of what is mined before ``step``."""
        return self.folder / f"step-{step:08d}.parquet"

    def refresh(self, step: int) -> None:
        """Mine before ``step``; all processes call this together."""
        started = time.monotonic()
        mined, positive = self._mine(step)
        if distributed.rank() == 0:
            self._write(step, mined, positive)
            self._log(step, mined, positive, time.monotonic() - started)
        distributed.barrier()  # process 0 writes alone what all have mined
        self._serve(mined.items)

    def restore(self, step: int) -> None:
        """Go on with what was in force before ``step``; later files, of a run that was cut off, are removed.

        Raises:
            MmclError: the file is missing, damaged or of other rows.
        """
        if distributed.rank() == 0:
            for path in self.folder.glob("step-*.parquet"):
                if path.name >= self.path(step).name:
                    path.unlink()
        start, every = self.settings.start, self.settings.every
        if step <= start:  # mined anew before the step, if at all
            return
        path = self.path(start if every is None else start + (step - 1 - start) // every * every)
        try:
            table = pq.read_table(path, columns=["item", "negative"], page_checksum_verification=True)
            items = table["item"].to_numpy().reshape(len(self.feed.positions), self.rules.count)
            if not (items.min() >= 0 and items.max() < len(self._corpus)):
                raise ValueError("items that the data do not have")
            if table["negative"].to_pylist() != self.feed.ids(self._stands_in[items.ravel()]):
                raise ValueError("other items than the data have")
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise MmclError(
                f"{path}: the negatives that the run goes on with are missing or damaged ({str(error).splitlines()[0]})"
                "; start a new run with --out"
            ) from None
        self._serve(items)

    @contextmanager
    def full_load(self) -> Iterator[None]:
        """A context in which batches carry some negatives or other."""
        before = self.feed.hard
        self._serve(np.zeros((len(self.feed.positions), self.rules.count), np.int64))
        yield
        self.feed.hard = before

    def _serve(self, items: np.ndarray) -> None:
        of_rows = np.zeros((self.feed.total, self.rules.count), np.int64)
        of_rows[self.feed.positions] = items
        self.feed.hard = HardNegatives(self.roles[1], self._corpus, self._ids, of_rows)

    def _require_enough(self) -> None:
        """Random negatives must be left for every row."""
        rows = np.arange(len(self._anchors))
        for start in range(0, len(rows), ANCHORS_AT_ONCE):
            chunk = rows[start : start + ANCHORS_AT_ONCE]
            left = len(self._corpus) - np.diff(self._known.of(chunk).indptr)
            if left.min() < self.rules.count:
                name = self.feed.ids(self.feed.positions[chunk[[left.argmin()]]])[0]
                raise MmclError(
                    f"data.mining.count: {self.rules.count} negatives of each row, but row {name} of {self.feed.name} "
                    f"has only {left.min()} of the {len(self._corpus)} distinct items of role '{self.roles[1]}' that "
                    "are not its own; lower the count"
                )

    def _mine(self, step: int) -> tuple[Mined, np.ndarray]:
        """What there is for every usable row, and each one's similarity of anchor and positive."""
        dtype, device = DTYPES[self.precision], self.method.encoder.device
        with torch.autocast(device.type, dtype=dtype, enabled=self.precision != "float32"):
            embedded = self._vectors(self.method.encoder, [self.feed.columns[role] for role in self.roles])
        index = Index.build(embedded.corpus, show_progress=False)
        found: list[tuple[Mined, np.ndarray]] = []
        count = len(self._anchors)
        share = share_of(count)
        with log_progress("mine", len(share)) as advance:
            for start in range(0, len(share), ANCHORS_AT_ONCE):
                rows = share[start : start + ANCHORS_AT_ONCE]
                anchors, own = embedded.anchors(rows), self._known.of(rows)
                positive = self._known.similarity(rows, anchors, embedded.corpus)
                seeds = mix(torch.from_numpy(rows), self.seed, step).numpy()
                mined = mine(index, embedded.corpus, anchors, positive, own, self.rules, seeds, self._guide(rows))
                found.append((mined, positive))
                advance(len(rows))
        parts, positives = zip(*found, strict=True)
        columns = [*map(np.concatenate, zip(*parts, strict=True)), np.concatenate(positives)]
        items, scores, ranks, positive = (
            from_shares(torch.from_numpy(column).to(device), count).cpu().numpy() for column in columns
        )
        return Mined(items, scores, ranks), positive

    def _guide(self, rows: np.ndarray) -> GuideVectors | None:
        if self.settings.guide is None:
            return None
        embedded = self._guide_vectors
        anchors = embedded.anchors(rows)
        return GuideVectors(anchors, embedded.corpus, self._known.similarity(rows, anchors, embedded.corpus))

    @cached_property
    def _guide_vectors(self) -> _Vectors:
        """Made in the first mining, not before: all processes must be there."""
        assert self._guide_model is not None, "it is asked for once"
        encoder, columns = self._guide_model
        self._guide_model = None  # its weights have done their work
        try:
            return self._vectors(encoder, columns)
        except NotFiniteError as error:
            raise MmclError(f"data.mining.guide: of model '{self.settings.guide}' {error}; name another one") from None

    def _open_guide(self, name: str) -> tuple[Towers, list[Column]]:
        """The guide and its features of both roles."""
        encoder = open_model(name).to(self.method.encoder.device)
        modalities = [self.method.columns[role] for role in self.roles]
        if missing := sorted(set(modalities) - encoder.modalities):
            raise MmclError(f"data.mining.guide: model '{name}' does not embed {missing[0]}s; name one that does")
        features = zip(self.roles, modalities, strict=True)
        return encoder, [self.feed.features(role, modality, "mining_guide", encoder) for role, modality in features]

    def _vectors(self, encoder: Towers, columns: Sequence[Column]) -> _Vectors:
        anchors, positives = columns
        _, first, of_rows = np.unique(anchors.contents[self._anchors], return_index=True, return_inverse=True)
        own = encoder is self.method.encoder
        one, other = (self.method.reading.tower(role) if own else self.method.columns[role] for role in self.roles)
        distinct, corpus = self._anchors[first], self._corpus
        embedded = _Vectors(
            embed(encoder, one, lambda places: anchors.inputs(distinct[places]), len(distinct)),
            of_rows,
            embed(encoder, other, lambda places: positives.inputs(corpus[places]), len(corpus)),
        )
        for role, vectors in zip(self.roles, (embedded.distinct, embedded.corpus), strict=True):
            if zero := int((~vectors.any(1)).sum()):
                raise NotFiniteError(f"{zero:,} of {len(vectors):,} vectors of role '{role}' became zero", "vectors")
        return embedded

    def _write(self, step: int, mined: Mined, positive: np.ndarray) -> None:
        self.folder.mkdir(exist_ok=True)
        with (
            atomic_file(self.path(step)) as beside,
            pq.ParquetWriter(beside, SCHEMA, compression="zstd", write_page_checksum=True) as file,
        ):
            for start in range(0, len(positive), ROWS_A_GROUP):
                part = slice(start, start + ROWS_A_GROUP)
                rows, items = self.feed.positions[part], mined.items[part].ravel()
                each = np.repeat(np.arange(len(rows)), self.rules.count)
                columns = [
                    rows[each],
                    pa.array(self.feed.ids(rows)).take(pa.array(each)),
                    pa.array(self.feed.ids(self._stands_in[items])),
                    items,
                    positive[part][each],
                    mined.scores[part].ravel(),
                    mined.ranks[part].ravel(),
                ]
                file.write_table(pa.table(columns, schema=SCHEMA))

    def _log(self, step: int, mined: Mined, positive: np.ndarray, seconds: float) -> None:
        random = mined.ranks < 0
        log.info(
            "step %d: %d hard negatives mined for each of %d rows among %d items in %.1f s; mean similarity %.3f, of "
            "positives %.3f%s",
            step,
            self.rules.count,
            len(positive),
            len(self._corpus),
            seconds,
            mined.scores.mean(),
            positive.mean(),
            f"; {random.mean():.0%} are random ones" if random.any() else "",
        )
        if random.any() and not self._warned:
            self._warned = True
            log.warning(
                "data.mining: %d of %d rows have fewer than %d items that pass among their nearest %d; %d of %d "
                "negatives are random ones instead (rank -1 in %s); %s",
                random.any(axis=1).sum(),
                len(random),
                self.rules.count,
                self.rules.depth,
                random.sum(),
                random.size,
                self.path(step),
                "a larger depth finds more"
                if self.rules.depth < len(self._corpus)
                else "all items were looked at, so that only wider limits let more pass",
            )


class _Vectors(NamedTuple):
    """What an encoder makes of anchors and corpus: unit vectors.

    Attributes:
        distinct: (A, D) of the distinct anchors.
        of_rows: (N,) place in them of each row's.
        corpus: (C, D).
    """

    distinct: np.ndarray
    of_rows: np.ndarray
    corpus: np.ndarray

    def anchors(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), D)"""
        return self.distinct[self.of_rows[rows]]

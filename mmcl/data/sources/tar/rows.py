"""Tar shards as rows for encoding and evaluation: a stream that is read in its order, as often as it is needed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from mmcl.data.images import ImageError, image_suffixes
from mmcl.data.rows import ColumnError, Rows
from mmcl.data.sources import open_source
from mmcl.data.sources.tar.columns import NoTextError, ShardColumn, extensions_of, require_columns
from mmcl.data.sources.tar.count import count_samples
from mmcl.data.sources.tar.names import is_local, shard_name
from mmcl.data.sources.tar.read import Reachable, Sample, ShardError, read_shard
from mmcl.data.sources.tar.shards import is_shards, list_shards
from mmcl.data.sources.tar.stream import SampleError
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
_LOOKED_AT = 100
_logged: set[str] = set()


def open_rows(
    source: str | Path, *, split: str | None = None, separator: str | None = None, root: str | Path | None = None
) -> Rows | ShardRows:
    """The rows of a source of any kind: tar shards, or what ``open_source`` opens.

    Raises:
        MmclError: there is no such source, it is damaged, or tar shards are asked for a split or a separator.
    """
    if not is_shards(source):
        return open_source(source, split=split, separator=separator, root=root)
    if split is not None:
        raise MmclError(f"{source}: tar shards have no splits; leave out split '{split}'")
    if separator is not None or root is not None:
        raise MmclError(f"{source}: a separator and an image root are of tables; leave them out of tar shards")
    return ShardRows(source)


@dataclass
class ShardBlock:
    """Some of the samples."""

    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def ids(self, column: str | None = None) -> list[str]:
        """Shard and key of each sample, or its one text in ``column``. Raises ``MmclError`` for a sample without."""
        if column is None:
            return [sample.name for sample in self.samples]
        ids: list[str] = []
        for sample, text in zip(self.samples, self.texts(column), strict=True):
            if not isinstance(text, str):
                what = "no id" if text is None else "several ids"
                raise ColumnError(f"{sample.name}: has {what} in column '{column}'; write the shard anew", column)
            ids.append(text)
        return ids

    def images(self, column: str, indices: Iterable[int]) -> Sequence[bytes | ImageError]:
        """Encoded bytes, or the error why there is no image that can be read."""
        return [_image(self.samples[index], _column(column)) for index in indices]

    def texts(self, column: str) -> list[str | list[str] | None]:
        """The captions of each sample, None where there is none."""
        return [_texts(sample, _column(column)) for sample in self.samples]

    def column(self, name: str) -> list[Any]:
        """The first text of each sample."""
        return [texts[0] if isinstance(texts, list) else texts for texts in self.texts(name)]


class ShardRows:
    """The samples of tar shards, with what encoding and the evaluations ask of :class:`~mmcl.data.rows.Rows`.

    A column is ``image``, ``text``, a field of the sample's ``json``, or extensions as in ``data.columns``:
    ``jpg;png``, ``json.caption``. The id of a sample is its shard and key.

    Attributes:
        name: what messages call the rows.
        damage: shards that could not be read to their end, and why.
    """

    folder = None

    def __init__(self, source: str | Path) -> None:
        self.name = str(source)
        self.shards = list_shards(source)
        self.damage: dict[str, str] = {}
        self._unreachable: set[str] = set()
        self._ids: list[str] | None = None
        self._stream: Iterator[Sample | ShardError] = iter(())
        self._at: int | None = None  # number of the sample that the stream gives next
        if not self.shards:
            raise MmclError(f"{source}: there are no shards")

    def __len__(self) -> int:
        if self.total is None:
            log.info("%s: %d shards are read once to count their samples", self.name, len(self.shards))
            return len(self.ids())
        return self.total

    @property
    def total(self) -> int | None:
        """How many samples there are, if that is known without reading a stream."""
        if self._ids is None and all(map(is_local, self.shards)):
            return count_samples(self.shards)
        return None if self._ids is None else len(self._ids)

    @property
    def column_names(self) -> list[str]:
        """``image`` and ``text`` as far as the first samples have them, and their extensions."""
        extensions = {extension: None for sample in self._first() for extension in sample.files}
        usual = [_column(name) for name in ("image", "text")]
        return [column.role for column in usual if not column.files.isdisjoint(extensions) or not extensions] + [
            *extensions
        ]

    @property
    def fingerprint(self) -> str:
        """Changes when the shards do, as far as their names and, of local ones, size and time of change tell."""
        local = [Path(shard).stat() if is_local(shard) else None for shard in self.shards]
        states = [
            (shard, stat and (stat.st_size, stat.st_mtime_ns)) for shard, stat in zip(self.shards, local, strict=True)
        ]
        return hashlib.blake2b(repr(states).encode(), digest_size=16).hexdigest()

    def require(self, columns: Iterable[str]) -> None:
        """Raise ``MmclError`` if the first samples have none of a column's files."""
        wanted = [_column(column) for column in columns]
        require_columns(self.shards, wanted, cure="a column may be made of these, such as jpg;png or json.caption")
        first = self._first()
        if not first and all(map(is_local, self.shards)) and not len(self):
            raise MmclError(f"{self.name}: the shards hold no samples")
        for column in wanted:
            if first and not any(
                isinstance(_image(sample, column), bytes) or _texts(sample, column) for sample in first
            ):
                raise ColumnError(
                    f"{self.name}: no sample has a column '{column.role}'; they have {extensions_of(first)}, of which "
                    "a column may be made, such as jpg;png or json.caption",
                    column.role,
                )

    def modality(self, column: str) -> Literal["image", "text"]:
        """``image`` or ``text``, by the name and the extensions of a column."""
        choices = [choice.split(".")[-1].lower() for choice in _column(column).choices[:1]]
        return "image" if column == "image" or any(f".{choice}" in image_suffixes() for choice in choices) else "text"

    def holds_numbers(self, column: str) -> bool:
        """False: what is no JSON is text."""
        return False

    def select(self, indices: Sequence[int]) -> ShardBlock:
        """The samples of these numbers, which ascend; as many as there are. The stream goes on from the last one that
        was read, or begins anew."""
        if not indices:
            return ShardBlock([])
        if self._at is None or indices[0] < self._at:
            self._stream, self._at = self._samples(), 0
        block, wanted = ShardBlock([]), frozenset(indices)
        for sample in self._stream:
            if isinstance(sample, ShardError):
                self._tell(sample)
                continue
            if self._at > indices[-1]:  # read to know of damage behind the last one
                self._stream = chain([sample], self._stream)
                break
            if self._at in wanted:
                block.samples.append(sample)
            self._at += 1
        return block

    def images(self, column: str, indices: Sequence[int]) -> Sequence[bytes | ImageError]:
        """As of :class:`ShardBlock`."""
        block = self.select(indices)
        return block.images(column, range(len(block)))

    def refuse_damage(self) -> None:
        """Raise ``MmclError`` if a shard could not be read to its end so far."""
        self.refuse_unreachable()
        for name, reason in self.damage.items():
            raise MmclError(f"{self.name}: {name}: {reason}; write the shard anew")

    def refuse_unreachable(self) -> None:
        """Raise ``MmclError`` if a shard that is no file could not be read to its end so far: it may be the next time,
        and then its samples have other numbers."""
        for name in sorted(self._unreachable & self.damage.keys()):
            raise MmclError(
                f"{self.name}: {name}: {self.damage[name]}; give the command again once it can be read, or leave the "
                "shard out"
            )

    def texts(self, column: str) -> list[str | list[str] | None]:
        """The captions of every sample."""
        found: list[str | list[str] | None] = []
        ids = []
        for sample in self._readable():
            found.append(_texts(sample, _column(column)))
            ids.append(sample.name)
        self._ids = ids
        return found

    def ids(self) -> list[str]:
        """Shard and key of every sample."""
        if self._ids is None:
            self._ids = [sample.name for sample in self._readable(wanted=())]
        return self._ids

    def _samples(self, wanted: Sequence[str] | None = None) -> Iterator[Sample | ShardError]:
        reachable = Reachable()
        for shard in self.shards:
            try:
                for sample in read_shard(shard, wanted):
                    reachable.read()
                    if sample.apart:
                        _say(
                            f"order of {shard}",
                            f"{sample.name}: its files do not stand one after the other, so that it is several "
                            "samples; sort the tar by name, as tar --sort=name does",
                        )
                    yield sample
            except ShardError as error:
                reachable.failed(shard, error)
                if not is_local(shard):
                    self._unreachable.add(error.name)
                yield error

    def _readable(self, wanted: Sequence[str] | None = None) -> Iterator[Sample]:
        for sample in self._samples(wanted):
            if isinstance(sample, Sample):
                yield sample
            else:
                self._tell(sample)

    def _tell(self, error: ShardError) -> None:
        if error.name not in self.damage:
            self.damage[error.name] = error.reason
            log.warning("%s: cannot be read, or not to its end: %s", error.name, error.reason)

    def _first(self) -> list[Sample]:
        shard = next(filter(is_local, self.shards), None)
        if shard is None:
            return []
        first: list[Sample] = []
        try:
            first.extend(islice(read_shard(shard), _LOOKED_AT))
        except ShardError as error:
            if not first:
                raise MmclError(f"{shard_name(shard)}: {error.reason}") from None
        return first


def _column(name: str) -> ShardColumn:
    """The files that a column's name stands for."""
    if name in ("image", "text"):
        return ShardColumn(name, name)
    named = any(sign in name for sign in ";.")
    return ShardColumn(name, "text", name if named else f"{name};{name}.txt;json.{name}")


def _image(sample: Sample, column: ShardColumn) -> bytes | ImageError:
    found = next((choice.lower() for choice in column.choices if choice.lower() in sample.files), None)
    try:
        return ImageError(column.missing(sample).reason) if found is None else sample.read(found)
    except ShardError as error:
        return ImageError(error.reason)


def _texts(sample: Sample, column: ShardColumn) -> str | list[str] | None:
    try:
        texts = column.captions(sample)
        return texts[0] if len(texts) == 1 else texts
    except NoTextError:
        return None
    except (SampleError, ShardError) as error:
        _say(f"a text of {sample.shard}", f"{sample.name}: {error.reason}; of such samples it is as if there were none")
        return None


def _say(about: str, text: str) -> None:
    """Once a process: the rows may be read several times."""
    if about not in _logged:
        _logged.add(about)
        log.warning("%s", text)

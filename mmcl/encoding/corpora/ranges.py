"""Which rows each shard owns, and which process encodes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl.encoding.corpora.folder import CLAIM
from mmcl.encoding.corpora.manifest import ENCODE, described, read_manifest, shard_name, shard_number
from mmcl.runtime.lock import Claim, claim


@dataclass(frozen=True)
class Ranges:
    """The rows of a source, cut into ranges of one length, each of which a shard owns.

    Where the ranges end depends on the source and the settings alone, so that any process at any time means the same
    rows by a number.

    Attributes:
        folder: of the vectors.
        total: rows of the source.
        size: rows of a range; the last one may have fewer.
        begin: the first row; before it, shards that an older mmcl wrote own the rows.
        first: the number of the first shard.
    """

    folder: Path
    total: int
    size: int
    begin: int = 0
    first: int = 0

    @classmethod
    def of(cls, folder: Path, manifest: dict[str, Any], total: int, size: int) -> Ranges:
        """The ranges of the rows that no shard in a manifest owns."""
        shards = manifest["shards"]
        first = 1 + max((shard_number(shard["name"]) for shard in shards), default=-1)
        return cls(folder, total, manifest["shard_rows"] or size, shards[-1]["rows_done"] if shards else 0, first)

    @property
    def numbers(self) -> range:
        """The number of every shard."""
        return range(self.first, self.first - (self.begin - self.total) // self.size)

    def rows(self, number: int) -> range:
        """The rows that a shard owns."""
        start = self.begin + (number - self.first) * self.size
        return range(start, min(start + self.size, self.total))

    def owner(self, row: int) -> int:
        """The number of the shard that owns a row."""
        return self.first + (row - self.begin) // self.size

    def missing(self) -> list[int]:
        """The numbers of the shards that have not been written; none in a finished folder."""
        done = set(described(self.folder))
        found = [number for number in self.numbers if number not in done]
        # Asked last: whoever finishes the folder removes the descriptions once its manifest lists the shards.
        return [] if found and self.finished() else found

    def is_done(self, number: int) -> bool:
        """Whether a shard has been written."""
        return (self.folder / f"{shard_name(number)}.json").exists() or self.finished()

    def finished(self) -> bool:
        """Whether the manifest lists all shards."""
        return bool(read_manifest(self.folder, ENCODE)["complete"])

    def claim(self, number: int) -> Claim | None:
        """The right to encode a shard that is not complete; None if it is, or another process has that right."""
        claimed = None if self.is_done(number) else claim(self.folder / f".{shard_name(number)}{CLAIM}", "encoding")
        if claimed and self.is_done(number):  # in between
            claimed.release()
            return None
        return claimed

    def claimed(self, numbers: list[int]) -> Iterator[tuple[int, Claim]]:
        """Those of some shards that nobody else is encoding, each claimed when it is its turn."""
        for number in numbers:
            if (claimed := self.claim(number)) is not None:
                yield number, claimed

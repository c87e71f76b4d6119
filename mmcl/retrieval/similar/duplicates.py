"""Near-duplicates of a corpus, or of one corpus in another, by their vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmcl.retrieval.similar.groups import Groups
from mmcl.retrieval.similar.pairs import (
    Pairs,
    UnitVectors,
    check_dimensions,
    check_threshold,
    similar_pairs,
    similar_pairs_by_index,
)
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file, folder_to_write, write_json

MOST_PAIRS = 10_000_000
_SHOWN = 10
_EQUAL = 1 - 2**-20


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Attributes:
        rows: vectors of the corpus.
        threshold: smallest cosine of a pair.
        pairs: how many reach it.
        written_pairs: how many of them are in ``pairs.parquet``.
        kept: rows of the corpus that stay.
        removed: rows that do not.
        clusters: how many; None where two corpora were compared.
        largest: the largest clusters: ``size``, and ``id`` and ``label`` of the row that stays.
        against: vectors of the other corpus; None without one.
        folder: where it is written.
    """

    rows: int
    threshold: float
    pairs: int
    written_pairs: int
    kept: int
    removed: int
    clusters: int | None
    largest: list[dict[str, Any]]
    against: int | None
    folder: str


def find_duplicates(
    vectors: Any,
    out: str | Path,
    threshold: float,
    *,
    against: Any = None,
    keep: str | np.ndarray = "first",
    by_index: bool = False,
    most_pairs: int = MOST_PAIRS,
    show_progress: bool | None = None,
) -> Duplicates:
    """Find pairs whose cosine is at least ``threshold``, and write what they are and which rows to keep into a folder.

    - ``pairs.parquet``: ``id``, ``other`` (its id, of ``against`` if there is one) and ``score``.
    - ``clusters.parquet``, within a corpus: ``id``, ``cluster``, ``size``, ``kept``, and ``label`` if there are any, of
      each row that has a near-duplicate. Rows joined by a chain of pairs are one cluster.
    - ``kept.parquet``: the column ``id`` of the rows that stay: one of each cluster and all without a duplicate; or,
      with ``against``, those that have none there.
    - ``dedup.json``: the numbers.

    Args:
        vectors: (N, D) array, or opened vectors on disk, which are read block by block.
        out: the folder; these files in it are replaced.
        threshold: smallest cosine of a pair, above -1 and at most 1.
        against: vectors of another corpus, such as the training data of a test set.
        keep: of a cluster: ``first``, ``central``: the row with the highest sum of similarities to its near-duplicates;
            or (N,) values, of which the highest stays. Of equals, the first.
        by_index: search an index rather than compare all pairs: faster for many, and may miss some.
        most_pairs: beyond so many, pairs are counted and joined, but not written.
        show_progress: a bar on stderr; None shows it on a terminal.

    Raises:
        MmclError: no vectors, unusable ones, other dimensions, or a threshold or ``keep`` that makes no sense.
    """
    check_threshold(threshold)
    if isinstance(keep, str) and keep not in ("first", "central"):
        raise MmclError(f"keep is '{keep}'; it is first, central, or a value for each vector")
    folder = folder_to_write(out)
    corpus, others = UnitVectors(vectors), None if against is None else UnitVectors(against)
    check_dimensions(corpus, corpus if others is None else others)
    if not isinstance(keep, str) and len(keep) != len(corpus):
        raise MmclError(f"keep has {len(keep):,} values for {len(corpus):,} vectors; give one for each")
    find = similar_pairs_by_index if by_index else similar_pairs
    found = _Found(corpus, others, most_pairs)
    with atomic_file(folder / "pairs.parquet") as beside:
        # The cosine of a vector with itself may be a little less than 1 in float32.
        found.write(find(corpus, min(threshold, _EQUAL), others, show_progress=show_progress), beside)
    if others is None:
        stays, clusters, largest = _of_clusters(found, keep, folder)
    else:
        stays, clusters, largest = ~found.matched, None, []
        (folder / "clusters.parquet").unlink(missing_ok=True)  # of an earlier search within the corpus
    _write(folder / "kept.parquet", found.ids.filter(pa.array(stays)).select(["id"]))
    kept = int(stays.sum())
    result = Duplicates(
        rows=len(corpus),
        threshold=threshold,
        pairs=found.count,
        written_pairs=found.written,
        kept=kept,
        removed=len(corpus) - kept,
        clusters=clusters,
        largest=largest,
        against=None if others is None else len(others),
        folder=str(folder),
    )
    write_json(folder / "dedup.json", asdict(result))
    return result


class _Found:
    """What is known of pairs once they have passed by."""

    def __init__(self, corpus: UnitVectors, others: UnitVectors | None, most: int) -> None:
        self.ids = corpus.shards.table()
        self._others = self.ids if others is None else others.shards.table()
        self.groups = Groups(len(corpus))
        self.matched = np.zeros(len(corpus), dtype=bool)
        self.similarity = np.zeros(len(corpus))  # sums over the pairs of a row
        self._within, self._most = others is None, most
        self.count = self.written = 0

    def write(self, pairs: Any, path: Path) -> None:
        one, other = (table.schema.field("id").type for table in (self.ids, self._others))
        schema = pa.schema({"id": one, "other": other, "score": pa.float32()})
        with pq.ParquetWriter(path, schema, compression="zstd") as file:
            for found in pairs:
                self._take(found)
                part = slice(0, max(0, self._most - self.written))
                columns = [
                    self.ids["id"].take(pa.array(found.first[part])),
                    self._others["id"].take(pa.array(found.second[part])),
                    pa.array(found.scores[part]),
                ]
                self.written += len(columns[2])
                if len(columns[2]):
                    file.write_table(pa.table(columns, schema=schema))

    def _take(self, pairs: Pairs) -> None:
        self.count += len(pairs.first)
        self.matched[pairs.first] = True
        if self._within:
            self.matched[pairs.second] = True
            self.groups.join(pairs.first, pairs.second)
            for ends in (pairs.first, pairs.second):
                np.add.at(self.similarity, ends, pairs.scores)


def _of_clusters(found: _Found, keep: str | np.ndarray, folder: Path) -> tuple[np.ndarray, int, list[dict[str, Any]]]:
    """Which rows stay, the number of clusters, and the largest ones; the members are written."""
    rows = np.flatnonzero(found.matched)
    roots, clusters, sizes = np.unique(found.groups.of(rows), return_inverse=True, return_counts=True)
    number = np.empty(len(roots), np.int64)  # from 0 for the largest
    by_size = np.argsort(-sizes, kind="stable")
    number[by_size] = np.arange(len(roots))
    clusters, sizes = number[clusters], sizes[by_size]
    if isinstance(keep, str):
        value = np.zeros(len(rows)) if keep == "first" else -found.similarity[rows]
    else:
        value = -_ranks(keep)[rows]
    order = np.lexsort((rows, value, clusters))
    best = np.zeros(len(rows), dtype=bool)
    best[order[np.flatnonzero(np.diff(clusters[order], prepend=-1))]] = True
    stays = ~found.matched
    stays[rows[best]] = True
    members = found.ids.take(pa.array(rows[order]))
    table = pa.table({"id": members["id"], "cluster": clusters[order], "size": sizes[clusters[order]]})
    table = table.append_column("kept", pa.array(best[order]))
    if "label" in members.column_names:
        table = table.append_column("label", members["label"])
    _write(folder / "clusters.parquet", table)
    shown = table.filter(pc.and_(table["kept"], pc.less(table["cluster"], _SHOWN)))
    return stays, len(roots), shown.drop_columns(["cluster", "kept"]).to_pylist()


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) places of values in their order, equal for equal ones; of None and NaN lower than all."""
    ranks = np.zeros(len(values), np.int64)
    there = ~pa.array(values, from_pandas=True).is_null().to_numpy(zero_copy_only=False)
    ranks[there] = np.unique(values[there], return_inverse=True)[1] + 1
    return ranks


def _write(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as beside:
        pq.write_table(table, beside, compression="zstd")

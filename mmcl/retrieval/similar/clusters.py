"""Clusters of a corpus: by k-means, or as communities around rows that many others are similar to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.retrieval.inputs import as_shards
from mmcl.retrieval.similar.pairs import UnitVectors, check_threshold, similar_pairs
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file, folder_to_write, write_json
from mmcl.runtime.progress import progress

POINTS_A_CLUSTER = 256  # that k-means learns from, as FAISS draws them
NONE = -1
_LISTED = 1 << 22  # neighbours that are in memory at a time


class Clusters(NamedTuple):
    """Which of N rows belong together.

    Attributes:
        of_rows: (N,) int64 number of each row's cluster, from 0 for the largest; -1 of a row in none.
        scores: (N,) float32 similarity to the centre of its cluster; NaN of a row in none.
        sizes: (K,) int64.
    """

    of_rows: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray

    def central(self, count: int) -> list[np.ndarray]:
        """The rows of each cluster that are nearest to its centre, at most ``count``, nearest first."""
        order = np.lexsort((-self.scores, self.of_rows))[len(self.of_rows) - int(self.sizes.sum()) :]
        return [members[:count] for members in np.split(order, np.cumsum(self.sizes)[:-1])] if len(self.sizes) else []


def kmeans(
    vectors: UnitVectors,
    k: int,
    *,
    similarity: Literal["cosine", "euclidean"] = "cosine",
    iterations: int = 25,
    seed: int = 0,
    show_progress: bool | None = None,
) -> Clusters:
    """K-means by FAISS, which learns the centres from at most 256 rows for each of them, drawn at random.

    Args:
        vectors: N of them.
        k: clusters. Those that stay empty are left out.
        similarity: ``cosine``: spherical k-means, whose centres have unit length (Dhillon and Modha 2001);
            ``euclidean``: of vectors as they are, each row's score being its negative distance.
        iterations: over the rows that are drawn.
        seed: of what is drawn. The same seed gives the same clusters.
        show_progress: a bar on stderr; None shows it on a terminal.

    Raises:
        MmclError: fewer vectors than clusters, or ``k`` below 1.
    """
    if not 1 <= k <= len(vectors):
        raise MmclError(f"{k:,} clusters of {len(vectors):,} vectors; k is from 1 to their number")
    spherical = similarity == "cosine"
    drawn = np.random.default_rng(seed).choice(len(vectors), min(len(vectors), k * POINTS_A_CLUSTER), replace=False)
    options = {"niter": iterations, "seed": seed, "spherical": spherical, "min_points_per_centroid": 1}
    learned = faiss.Kmeans(vectors.dim, k, max_points_per_centroid=POINTS_A_CLUSTER, **options)
    learned.train(_rows(vectors, np.sort(drawn), spherical))
    of_rows, scores = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    with progress("assign", len(vectors), "vectors", show_progress) as advance:
        for start in range(0, len(vectors), POINTS_A_CLUSTER * 256):
            rows = np.arange(start, min(start + POINTS_A_CLUSTER * 256, len(vectors)))
            near, nearest = learned.index.search(_rows(vectors, rows, spherical), 1)
            of_rows[rows] = nearest[:, 0]
            scores[rows] = near[:, 0] if spherical else -np.sqrt(np.maximum(near[:, 0], 0.0))
            advance(len(rows))
    return _largest_first(of_rows, scores)


def communities(
    vectors: UnitVectors, threshold: float, *, smallest: int = 10, show_progress: bool | None = None
) -> Clusters:
    """Communities: rows whose cosine to a row at the centre is at least ``threshold``.

    The rows with the most such neighbours become centres first; a row belongs to the first centre that takes it, and a
    centre that fewer than ``smallest`` rows are left for makes none. It is what sentence-transformers'
    ``community_detection`` finds, in memory that does not grow with the number of neighbours.

    Args:
        vectors: N of them.
        threshold: smallest cosine to the centre.
        smallest: rows of a community, the centre counted.
        show_progress: a bar on stderr; None shows it on a terminal.

    Raises:
        MmclError: a threshold that is no cosine.
    """
    check_threshold(threshold)
    counts = np.ones(len(vectors), np.int64)
    for pairs in similar_pairs(vectors, threshold, show_progress=show_progress):
        for ends in (pairs.first, pairs.second):
            np.add.at(counts, ends, 1)
    of_rows = np.full(len(vectors), NONE)
    scores, found = np.full(len(vectors), np.nan, np.float32), 0
    waiting = np.argsort(-counts, kind="stable")
    waiting = waiting[: np.count_nonzero(counts >= max(1, smallest))]
    while len(waiting):
        # As many centres at a time as their neighbours allow, one at least.
        some = waiting[: max(1, int(np.searchsorted(np.cumsum(counts[waiting]), _LISTED)))]
        some = some[:256]
        for centre, rows, near in _neighbours(vectors, some, threshold):
            if of_rows[centre] != NONE:
                continue
            free = of_rows[rows] == NONE
            if np.count_nonzero(free) >= smallest:
                of_rows[rows[free]], scores[rows[free]] = found, near[free]
                found += 1
        waiting = waiting[len(some) :]
        waiting = waiting[of_rows[waiting] == NONE]
    return _largest_first(of_rows, scores)


def _neighbours(
    vectors: UnitVectors, centres: np.ndarray, threshold: float
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Each centre with the rows near it, itself among them, and their cosines."""
    of_centres = vectors.take(centres)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start, block in vectors.blocks():
        products = of_centres @ block.T
        found, column = (products >= threshold).nonzero(as_tuple=True)
        parts.append((found.numpy(), column.numpy() + start, products[found, column].numpy()))
    place, rows, near = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(place, kind="stable")
    cuts = np.searchsorted(place[order], np.arange(1, len(centres)))
    pieces = zip(centres.tolist(), np.split(rows[order], cuts), np.split(near[order], cuts), strict=True)
    return list(pieces)


def _largest_first(of_rows: np.ndarray, scores: np.ndarray) -> Clusters:
    """Clusters numbered by their sizes, without empty ones."""
    sizes = np.bincount(of_rows[of_rows != NONE])
    order = np.argsort(-sizes, kind="stable")
    order = order[: np.count_nonzero(sizes)]
    numbers = np.full(len(sizes) + 1, NONE)  # the last is of rows in none
    numbers[order] = np.arange(len(order))
    return Clusters(numbers[of_rows], scores, sizes[order])


def _rows(vectors: UnitVectors, rows: np.ndarray, unit: bool) -> Any:
    found = vectors.take(rows).numpy() if unit else vectors.shards.take(rows)
    return np.ascontiguousarray(found, np.float32)


def write_clusters(clusters: Clusters, vectors: Any, out: str | Path, central: int = 3) -> dict[str, Any]:
    """Write ``clusters.parquet`` into a folder, with ``id``, ``cluster`` (empty of a row in none), ``score`` and, if
    there are any, ``label`` of each row, and ``clusters.json``.

    Args:
        clusters: of the vectors.
        vectors: (N, D) array or opened vectors on disk, which have ids.
        out: the folder.
        central: rows of each cluster to name, from the centre on.

    Returns:
        What ``clusters.json`` holds: ``rows``, ``none``: rows in no cluster, and ``clusters``: of each its number
        ``cluster``, its ``size``, and ``central``: labels of rows, or their ids.
    """
    folder = folder_to_write(out)
    folder.mkdir(parents=True, exist_ok=True)
    table = as_shards(vectors).table()
    nowhere = clusters.of_rows == NONE
    columns = {
        "cluster": pa.array(clusters.of_rows, mask=nowhere),
        "score": pa.array(clusters.scores, mask=nowhere),
    }
    named = pa.table(
        {"id": table["id"], **columns} | ({"label": table["label"]} if "label" in table.column_names else {})
    )
    with atomic_file(folder / "clusters.parquet") as beside:
        pq.write_table(named, beside, compression="zstd")
    shown = []
    for number, rows in enumerate(clusters.central(central)):
        some = named.take(pa.array(rows)).to_pylist()
        names = [str(row["id"]) if row.get("label") is None else row["label"] for row in some]
        shown.append({"cluster": number, "size": int(clusters.sizes[number]), "central": names})
    about = {"rows": len(nowhere), "none": int(nowhere.sum()), "clusters": shown}
    write_json(folder / "clusters.json", about)
    return about

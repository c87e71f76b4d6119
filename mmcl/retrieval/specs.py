"""Which FAISS index suits how many vectors, how it is made from its name, and how thoroughly it is searched."""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np

from mmcl.runtime.errors import MmclError

EXACT_ROWS = 200_000
FULL_PRECISION_BYTES = 8 * 2**30
TARGET_RECALL = 0.99
GRAPH_CANDIDATES = 128
METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "dot": faiss.METRIC_INNER_PRODUCT, "euclidean": faiss.METRIC_L2}

_SEED = 0
_TUNING_QUERIES = 256
_TUNING_K = 10


def choose_spec(count: int, dim: int) -> tuple[str, str]:
    """The FAISS factory string for ``count`` vectors of ``dim`` components, and the reason in words.

    ``Flat``, which is exact, below 200,000 vectors: a query takes milliseconds. From there on an inverted file of
    4·sqrt(N) cells, rounded to a power of two (what FAISS's guidelines advise), of which a query visits a few. The
    vectors keep full precision while they fit 8 GiB; beyond that each component is one byte (``SQ8``).

    >>> choose_spec(1_000, 384)[0], choose_spec(1_000_000, 384)[0], choose_spec(100_000_000, 384)[0]
    ('Flat', 'IVF4096,Flat', 'IVF32768,SQ8')
    """
    if count < EXACT_ROWS:
        return "Flat", f"exact: {count:,} vectors are fewer than {EXACT_ROWS:,}"
    cells = 2 ** round(math.log2(4 * math.sqrt(count)))
    size = 4 * count * dim
    codes = "Flat" if size <= FULL_PRECISION_BYTES else "SQ8"
    why = f"approximate: {count:,} vectors are {EXACT_ROWS:,} or more; 4·sqrt(N) cells, rounded to a power of two"
    if codes == "SQ8":
        why += f"; {size / 2**30:,.0f} GiB of float32 are more than 8, so a byte a component"
    return f"IVF{cells},{codes}", why


def make(spec: str, dim: int, similarity: str) -> Any:
    """An empty FAISS index. A graph (HNSW) keeps 128 candidates in a search, FAISS's 16 miss every third neighbour.

    Raises:
        MmclError: FAISS does not know ``spec``, or cannot build it for these dimensions, or its scores would not be
            this similarity.
    """
    try:
        index = faiss.index_factory(dim, spec, METRICS[similarity])
    except RuntimeError as error:
        raise MmclError(
            f"index spec '{spec}' cannot be built for {dim} dimensions and {similarity} similarity "
            f"({reason(error)}); use 'auto', 'Flat', or another FAISS factory string such as 'IVF1024,Flat' or 'HNSW32'"
        ) from None
    if similarity != "euclidean" and _subtracts_the_mean(index):
        raise MmclError(
            f"index spec '{spec}' subtracts the mean, which changes {similarity} similarity; "
            "rotate or reduce with OPQ or RR instead, or build with similarity='euclidean'"
        )
    graph = inside(index)
    if isinstance(graph, faiss.IndexHNSW):
        graph.hnsw.efSearch = GRAPH_CANDIDATES
    return index


def _subtracts_the_mean(index: Any) -> bool:
    if not isinstance(index, faiss.IndexPreTransform):
        return False
    steps = [faiss.downcast_VectorTransform(index.chain.at(step)) for step in range(index.chain.size())]
    return any(isinstance(step, faiss.PCAMatrix | faiss.ITQTransform | faiss.CenteringTransform) for step in steps)


def reason(error: Exception) -> str:
    """What FAISS says, without the C++ signature it says it in."""
    return str(error).rpartition(".cpp:")[2].partition(": ")[2] or str(error) or type(error).__name__


def training_rows(index: Any, count: int) -> np.ndarray:
    """Sorted positions of the vectors to train on: 64 a cell and at least 65,536 (a 256-entry codebook's fill), or all.

    Drawn without repetition from a fixed seed, so that the same vectors give the same index.
    """
    inverted = inverted_file(index)
    wanted = max(65_536, 64 * inverted.nlist if inverted else 0)
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SEED).choice(count, wanted, replace=False))


def inside(index: Any) -> Any:
    """The index below any rotation and refinement around it, as the class that it is."""
    if isinstance(index, faiss.IndexPreTransform):
        return inside(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        return inside(faiss.downcast_index(index.base_index))
    return index


def inverted_file(index: Any) -> Any | None:
    """The inverted file inside an index, below any rotation or refinement around it; None if it has none."""
    found = inside(index)
    return found if isinstance(found, faiss.IndexIVF) else None


def search_parameters(index: Any, effort: int | None = None, selector: Any | None = None) -> Any | None:
    """Parameters that go with one search, so that threads may share the index.

    Args:
        index: a FAISS index.
        effort: cells of an inverted file to visit (``nprobe``) or candidates of a graph to keep (``efSearch``); None is
            what the index itself says. An index with neither takes no notice.
        selector: a ``faiss.IDSelector`` of the vectors that may be found; None is all.

    Raises:
        RuntimeError: by the search: a fast-scan index without an inverted file takes no selector.
    """
    if isinstance(index, faiss.IndexPreTransform):
        below = search_parameters(faiss.downcast_index(index.index), effort, selector)
        return below and faiss.SearchParametersPreTransform(index_params=below)
    if isinstance(index, faiss.IndexRefine):
        below = search_parameters(faiss.downcast_index(index.base_index), effort, selector)
        return below and faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=below)
    given: dict[str, Any] = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=effort or index.nprobe, **given)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=effort or index.hnsw.efSearch, **given)
    return faiss.SearchParameters(**given) if given else None


def tuning_rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the pairs of stored vectors between which :func:`tune` asks."""
    first, second = np.random.default_rng(_SEED + 1).integers(0, count, (2, _TUNING_QUERIES))
    return first, second


def tune(index: Any, queries: np.ndarray) -> tuple[int, float]:
    """The fewest cells (a power of two) whose visit finds 99% of the ten best, and the share it finds.

    The measure is a visit to every cell. ``queries`` should lie halfway between pairs of stored vectors: like a text
    that asks for images, these lie off the stored vectors, and need more cells than those would.
    """
    inverted = inverted_file(index)
    cells: int = inverted.nlist if inverted else 1

    def best(visited: int) -> list[set[int]]:
        found = index.search(queries, min(_TUNING_K, index.ntotal), params=search_parameters(index, visited))[1]
        return [set(row) - {-1} for row in found.tolist()]

    all_best = best(cells)
    wanted = sum(map(len, all_best))
    visited = 1
    while visited < cells:
        found = sum(len(some & all_) for some, all_ in zip(best(visited), all_best, strict=True))
        if found >= TARGET_RECALL * wanted:
            return visited, found / wanted
        visited *= 2
    return cells, 1.0

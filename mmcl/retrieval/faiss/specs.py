"""Which FAISS index suits how many vectors, how it is made from its name, and how thoroughly it is searched."""

from __future__ import annotations

import math
import re
from typing import Any

import faiss
import numpy as np

from mmcl.runtime.errors import MmclError

EXACT_ROWS = 200_000
GRAPH_CANDIDATES = 128
METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "dot": faiss.METRIC_INNER_PRODUCT, "euclidean": faiss.METRIC_L2}

_SEED = 0
_ID_BYTES, _NODE_BYTES = 8, 16
_FEW, _SHORT = 16, 64  # components
_STORES = ("SQ8", "SQfp16", "Flat")  # that rank again, coarsest first


def choose_spec(count: int, dim: int, memory: int | None = None) -> tuple[str, str]:
    """The FAISS factory string for ``count`` vectors of ``dim`` components, and the reason in words.

    Up to 200,000 vectors are searched exactly. More go into cells, as many as the square root of their number, of which
    a search visits a few. There it compares codes of 4 bits for two components, 32 vectors at once (fast scan), and
    ranks the best of these again by vectors of a byte a component: in ``benchmarks/retrieval.py`` the fastest of the
    families at equal recall. Graphs (HNSW) took two to four times as long a query and many times as long to build, so
    that they are for those who name them. Vectors of 16 components or fewer are hardly longer than codes, and are kept.

    With less memory than this takes, the codes stand alone, and have ever fewer bits.

    Args:
        count: N.
        dim: D.
        memory: bytes that the index may take; None is as many as it is fastest with. Of the candidates, best first, the
            first that fits is chosen; the smallest if none does.

    >>> [choose_spec(rows, 384)[0] for rows in (1_000, 1_000_000, 100_000_000)]
    ['Flat', 'IVF1024,PQ192x4fsr,Refine(SQ8)', 'IVF8192,PQ192x4fsr,Refine(SQ8)']
    >>> [choose_spec(1_000_000, 384, memory=size * 10**6)[0] for size in (450, 250, 150, 80, 10)]
    ['IVF1024,SQ8', 'IVF1024,RaBitQ4', 'IVF1024,RaBitQ2', 'IVF1024,RaBitQ', 'OPQ48_192,IVF1024,PQ48x4fsr']
    """
    candidates = _candidates(count, dim)
    limit = math.inf if memory is None else memory
    spec, why = next((one for one in candidates if bytes_needed(one[0], count, dim) <= limit), candidates[-1])
    size = bytes_needed(spec, count, dim)
    why += f"; {size / 2**20:,.0f} MiB"
    if memory is not None:
        why += f" of {memory / 2**20:,.0f}" + (", the least there is" if size > memory else "")
    return spec, why


def _candidates(count: int, dim: int) -> list[tuple[str, str]]:
    """Specs and reasons, best first and so largest first."""
    file = f"IVF{max(1, 2 ** round(math.log2(math.sqrt(count))))}"
    parts = dim if dim <= _SHORT or dim % 2 else dim // 2
    few = max(1, dim // 8)
    found = [
        (f"{file},PQ{parts}x4fsr,Refine(SQ8)", "few bits a component find, a byte of each ranks again"),
        (f"{file},SQ8", "a byte a component"),
        (f"{file},RaBitQ4", "4 bits a component"),
        (f"{file},RaBitQ2", "2 bits a component"),
        (f"{file},RaBitQ", "a bit a component"),
        (f"OPQ{few}_{4 * few},{file},PQ{few}x4fsr", "half a bit a component"),
    ]
    if dim <= _FEW:
        found = [(f"{file},Flat", "so few components that codes would save nothing"), *found[1:2]]
    found = [(spec, f"approximate, {count:,} vectors in cells: {why}") for spec, why in found]
    if count < EXACT_ROWS:
        found.insert(0, ("Flat", f"exact: {count:,} vectors are fewer than {EXACT_ROWS:,}"))
    return found


def bytes_needed(spec: str, count: int, dim: int) -> int:
    """Bytes that an index of ``count`` vectors of ``dim`` components takes, its centroids and graph included."""
    index = faiss.index_factory(dim, spec)
    inverted = inverted_file(index)
    return count * _bytes_a_vector(index) + (4 * dim * inverted.nlist if inverted else 0)


def _bytes_a_vector(index: Any) -> int:
    if isinstance(index, faiss.IndexPreTransform):
        return _bytes_a_vector(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        return sum(_bytes_a_vector(faiss.downcast_index(part)) for part in (index.base_index, index.refine_index))
    if isinstance(index, faiss.IndexHNSW):
        links = 4 * index.hnsw.nb_neighbors(0) + _NODE_BYTES  # hardly any vector is on an upper level
        return _bytes_a_vector(faiss.downcast_index(index.storage)) + links
    return int(index.code_size) + (_ID_BYTES if isinstance(index, faiss.IndexIVF) else 0)


def finer(spec: str, count: int, dim: int, memory: int | None = None) -> str | None:
    """The same index whose hits are ranked again by a finer copy of the vectors than now; None if there is none that
    fits ``memory``, or if ``spec`` keeps the vectors as they are."""
    base, refined, store = spec.removesuffix(")").partition(",Refine(")
    if not refined and (base.endswith("Flat") or re.fullmatch(r"HNSW\d*", base)):
        return None
    for next_store in _STORES[_STORES.index(store) + 1 if refined else 0 :]:
        better = f"{base},Refine({next_store})"
        if memory is None or bytes_needed(better, count, dim) <= memory:
            return better
    return None


def refine(index: Any, spec: str, similarity: str) -> Any:
    """``index`` with the refinement that ends ``spec``, in place of its own; ``refine_index`` holds no vectors yet."""
    store = spec.rpartition(",")[2]
    refined = faiss.index_factory(index.d, f"Flat,{store}", METRICS[similarity])
    held = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
    refined.base_index = held  # in the place of an empty one, a few bytes that nothing frees
    refined.ntotal, refined.is_trained = held.ntotal, True
    if held is not index:
        index.own_fields = False  # of the base; its refinement goes with it
    return refined


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
    """Sorted positions of the vectors to train on: 64 a cell, 256 an entry of a codebook and at least 16,384, or all.

    Drawn without repetition from a fixed seed, so that the same vectors give the same index.
    """
    found = inside(index)
    codebook = getattr(found, "pq", None)
    entries = 2**codebook.nbits if codebook else 0
    wanted = max(16_384, 256 * entries, 64 * found.nlist if isinstance(found, faiss.IndexIVF) else 0)
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


def has_effort(index: Any) -> bool:
    """Whether a search can look at more or less of it: an inverted file or a graph."""
    return isinstance(inside(index), faiss.IndexIVF | faiss.IndexHNSW)


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

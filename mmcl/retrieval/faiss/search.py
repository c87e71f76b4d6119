"""Searching a FAISS index, whole or in part: exactly where that is asked for or costs less, else with a stated effort.

An approximate index that is limited to some of its vectors is searched with more effort, by as much as these are fewer:
an inverted file visits more cells, a graph keeps more candidates, so that about as many vectors are compared as in a
search of the whole. Exact search takes over where it compares fewer; of a condition on metadata wherever those that
fulfil it take no more than 128 MiB, and in a graph for queries around which there are hardly any of them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import faiss
import numpy as np

from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.faiss import specs
from mmcl.retrieval.faiss.contents import keeps_vectors
from mmcl.retrieval.faiss.selection import Selection
from mmcl.runtime.errors import MmclError

_TIED_CELLS = 2**24
_EDGES = 64  # of a graph's node, each of which a search compares with the query
_TUNED_K = 10


def nearest(
    index: Any,
    queries: np.ndarray,
    k: int,
    similarity: Similarity,
    effort: int | None = None,
    selection: Selection | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions, each (Q, k), best first, of equal scores the lower position; -inf and -1 where nothing was
    found.

    Args:
        index: a FAISS index.
        queries: (Q, D) float32, of unit length under cosine.
        k: at most as many as there are vectors to be found.
        similarity: of the index.
        effort: cells of an inverted file, candidates of a graph.
        selection: the vectors that may be found; None: all.
    """
    if not len(queries) or k == 0:
        return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    if selection is not None and _by_brute_force(index, effort, selection):
        with suppress(MmclError):  # codes that give no vectors back are searched as they are
            return _selected(index, queries, k, similarity, selection)
    if isinstance(index, faiss.IndexFlat):
        return _exact(index, queries, k, similarity, selection and selection.selector)
    return _approximate(index, queries, k, similarity, effort, selection)


def _by_brute_force(index: Any, effort: int | None, selection: Selection) -> bool:
    """Whether a selection is small, or smaller than what a graph would compare. Codes that are better not decoded are
    compared by the index itself, all of the selection, too."""
    found = specs.inside(index)
    if isinstance(found, faiss.IndexFastScan | faiss.IndexNSG):  # which take no selector
        return True
    if selection.is_small(index.d):
        return keeps_vectors(index)
    if not isinstance(found, faiss.IndexHNSW) or not selection.gathers:
        return False
    return len(selection) <= _EDGES * (effort or found.hnsw.efSearch) / selection.share


def _approximate(
    index: Any, queries: np.ndarray, k: int, similarity: Similarity, effort: int | None, selection: Selection | None
) -> tuple[np.ndarray, np.ndarray]:
    if selection is not None and isinstance(graph := specs.inside(index), faiss.IndexHNSW):
        return _by_graph(index, queries, k, similarity, effort or graph.hnsw.efSearch, selection)
    wanted = k
    if isinstance(index, faiss.IndexRefine):  # which ranks again so many times k as serve for ten
        k = max(k, min(_TUNED_K, index.ntotal if selection is None else len(selection)))
    inverted = specs.inverted_file(index)
    if inverted is not None:
        effort = effort or inverted.nprobe
        if selection is not None:
            effort = inverted.nlist if selection.is_small(index.d) else int(np.ceil(effort / selection.share))
        effort = min(effort, inverted.nlist)
    scores, positions = _ranked(index, queries, k, similarity, _parameters(index, effort, selection))
    short = positions[:, -1] < 0
    if short.any() and inverted is not None:
        everywhere = _parameters(index, inverted.nlist, selection)
        scores[short], positions[short] = _ranked(index, queries[short], k, similarity, everywhere)
    return scores[:, :wanted].copy(), positions[:, :wanted].copy()


def _by_graph(
    index: Any, queries: np.ndarray, k: int, similarity: Similarity, effort: int, selection: Selection
) -> tuple[np.ndarray, np.ndarray]:
    """A graph is searched whole, and what is not selected left out of what it finds. A search that would pass over the
    rest as it walks misses neighbours. Queries around which little is selected are answered by brute force."""
    depth = min(int(np.ceil(max(effort, 4 * k) / selection.share)), index.ntotal)
    scores, positions = _ranked(index, queries, depth, similarity, specs.search_parameters(index, depth))
    out = (positions < 0) | ~selection.allowed[positions]
    scores[out], positions[out] = -np.inf, -1
    first = np.argsort(out, axis=1, kind="stable")[:, :k]
    few = (~out).sum(axis=1) < min(2 * k, len(selection))
    scores, positions = np.take_along_axis(scores, first, 1), np.take_along_axis(positions, first, 1)
    if few.any():
        with suppress(MmclError):
            scores[few], positions[few] = _selected(index, queries[few], k, similarity, selection)
    return scores, positions


def _parameters(index: Any, effort: int | None, selection: Selection | None) -> Any:
    """Of a search limited to a selection. An inverted file visits the nearest of those cells that hold something of it:
    the others would use up the effort where what fulfils a condition lies apart from the query."""
    if selection is None:
        return specs.search_parameters(index, effort)
    if isinstance(index, faiss.IndexPreTransform):
        below = _parameters(faiss.downcast_index(index.index), effort, selection)
        return faiss.SearchParametersPreTransform(index_params=below)
    if isinstance(index, faiss.IndexRefine):
        below = _parameters(faiss.downcast_index(index.base_index), effort, selection)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=below)
    parameters: Any = specs.search_parameters(index, effort, selection.selector)
    if isinstance(index, faiss.IndexIVF):
        quantizer = faiss.downcast_index(index.quantizer)
        if isinstance(quantizer, faiss.IndexFlat | faiss.IndexHNSW):
            parameters.quantizer_params = specs.search_parameters(quantizer, effort, selection.cells(index))
    return parameters


def _selected(
    index: Any, queries: np.ndarray, k: int, similarity: Similarity, selection: Selection
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of a selection, by brute force."""
    scores = np.empty((len(queries), 0), np.float32)
    positions = np.empty((len(queries), 0), np.int64)
    for block, flat in selection.flats(index):
        here, places = _exact(flat, queries, min(k, len(block)), similarity)
        scores = np.concatenate([scores, here], axis=1)
        positions = np.concatenate([positions, block[places]], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # earlier blocks hold the lower positions
        scores, positions = np.take_along_axis(scores, best, 1), np.take_along_axis(positions, best, 1)
    return scores, positions


def _exact(
    flat: Any, queries: np.ndarray, k: int, similarity: Similarity, limit: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of a flat index: of equal scores, the lower position also has precedence for the last place."""
    params = specs.search_parameters(flat, None, limit)
    depth = min(k + 1, flat.ntotal)
    scores, positions = _ranked(flat, queries, depth, similarity, params)
    # FAISS keeps any of the equal ones, so that the search goes deeper where the last place's score goes on below it.
    tied = np.flatnonzero((scores[:, k - 1] == scores[:, -1]) & (positions[:, -1] >= 0) & (k < depth))
    while len(tied):
        depth = min(4 * depth, flat.ntotal)
        still = []
        for start in range(0, len(tied), step := max(1, _TIED_CELLS // depth)):
            rows = tied[start : start + step]
            deeper_scores, deeper = _ranked(flat, queries[rows], depth, similarity, params)
            scores[rows, :k], positions[rows, :k] = deeper_scores[:, :k], deeper[:, :k]
            still.append(rows[(deeper_scores[:, k - 1] == deeper_scores[:, -1]) & (deeper[:, -1] >= 0)])
        tied = np.concatenate(still) if depth < flat.ntotal else tied[:0]
    return scores[:, :k].copy(), positions[:, :k].copy()


def _ranked(
    index: Any, queries: np.ndarray, depth: int, similarity: Similarity, params: Any
) -> tuple[np.ndarray, np.ndarray]:
    try:
        scores, positions = index.search(queries, depth, params=params)
    except RuntimeError as error:
        raise MmclError(
            f"an index of this spec cannot be searched in part ({specs.reason(error):.200}), by a condition or after a "
            "removal; build it as 'auto'"
        ) from None
    if similarity == "euclidean":
        scores = -np.sqrt(np.maximum(scores, 0))  # FAISS gives the squared distance
    scores[positions < 0] = -np.inf
    order = np.lexsort((np.where(positions < 0, index.ntotal, positions), -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)

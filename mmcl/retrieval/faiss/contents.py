"""The vectors in a FAISS index: read back, and deleted."""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np

from mmcl.runtime.errors import MmclError

_mapping = threading.Lock()


def stored_vectors(index: Any, positions: np.ndarray) -> np.ndarray:
    """(n, D) float32 vectors at these positions, as exactly as the index holds them.

    Raises:
        MmclError: an index that keeps too little to give vectors back.
    """
    try:
        return _stored(index, np.ascontiguousarray(positions, np.int64))
    except RuntimeError:
        raise MmclError("an index of this spec cannot give back its vectors; build it as 'auto' or 'Flat'") from None


def _stored(index: Any, positions: np.ndarray) -> np.ndarray:
    if isinstance(index, faiss.IndexPreTransform):
        vectors = _stored(faiss.downcast_index(index.index), positions)
        for step in reversed(range(index.chain.size())):
            vectors = faiss.downcast_VectorTransform(index.chain.at(step)).reverse_transform(vectors)
        return vectors
    if isinstance(index, faiss.IndexRefine):
        return _stored(faiss.downcast_index(index.refine_index), positions)
    if isinstance(index, faiss.IndexHNSW):
        return _stored(faiss.downcast_index(index.storage), positions)
    if isinstance(index, faiss.IndexFlat):
        every = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
        return every[positions]
    if isinstance(index, faiss.IndexIVF):
        _map_places(index)
    return index.reconstruct_batch(positions)


def keeps_vectors(index: Any) -> bool:
    """Whether vectors come back nearly as they were: at full precision or with a number a component. Shorter codes tell
    more of a similarity by their own measure than by the vectors that they decode to."""
    if isinstance(index, faiss.IndexPreTransform):
        return keeps_vectors(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        return keeps_vectors(faiss.downcast_index(index.refine_index))
    if isinstance(index, faiss.IndexHNSW):
        return True  # a search of the graph compares with what its storage decodes to
    kinds = faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer
    return isinstance(index, kinds)


def cells_of(inverted: Any) -> np.ndarray:
    """(N,) the cell of an inverted file in which each vector lies."""
    _map_places(inverted)
    array = inverted.direct_map.array
    return faiss.rev_swig_ptr(array.data(), array.size()) >> 32


def _map_places(inverted: Any) -> None:
    """Have FAISS know where each vector lies, in 8 bytes a vector, until the next deletion."""
    with _mapping:  # threads that search may ask at once
        if inverted.direct_map.type != faiss.DirectMap.Array:
            inverted.set_direct_map_type(faiss.DirectMap.NoMap)
            inverted.make_direct_map()


def deletes(index: Any) -> bool:
    """Whether :func:`delete` can; of a graph (HNSW) it cannot."""
    if isinstance(index, faiss.IndexPreTransform):
        return deletes(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        return all(deletes(faiss.downcast_index(part)) for part in (index.base_index, index.refine_index))
    if isinstance(index, faiss.IndexIVF):
        lists = faiss.downcast_InvertedLists(index.invlists)
        return isinstance(lists, faiss.ArrayInvertedLists | faiss.BlockInvertedLists)
    return isinstance(index, faiss.IndexFlatCodes)


def delete(index: Any, positions: np.ndarray) -> None:
    """Delete the vectors at these sorted positions, of which the others move up to close the gaps."""
    if isinstance(index, faiss.IndexPreTransform):
        _delete_from(index, [faiss.downcast_index(index.index)], positions)
    elif isinstance(index, faiss.IndexRefine):
        parts = [faiss.downcast_index(part) for part in (index.base_index, index.refine_index)]
        _delete_from(index, parts, positions)
    elif isinstance(index, faiss.IndexIVF):
        keep = np.ones(index.ntotal, bool)
        keep[positions] = False
        moved = np.cumsum(keep) - 1
        index.set_direct_map_type(faiss.DirectMap.NoMap)
        index.remove_ids(_selector(~keep))
        lists = faiss.downcast_InvertedLists(index.invlists)
        for cell in range(lists.nlist):
            if size := lists.list_size(cell):
                ids = faiss.rev_swig_ptr(lists.get_ids(cell), size)
                ids[:] = moved[ids]
    else:
        gone = np.zeros(index.ntotal, bool)
        gone[positions] = True
        index.remove_ids(_selector(gone))


def _delete_from(whole: Any, parts: list[Any], positions: np.ndarray) -> None:
    for part in parts:
        delete(part, positions)
    whole.ntotal = parts[0].ntotal


def _selector(wanted: np.ndarray) -> Any:
    return selector(np.packbits(wanted, bitorder="little"))


def selector(bits: np.ndarray) -> Any:
    """FAISS's selector of the positions whose bits are set, the lowest bit of a byte being the first."""
    return faiss.IDSelectorBitmap(bits)

"""Vectors into a FAISS index, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.encoding.corpora.stored import id_table
from mmcl.losses.logits.similarity import Similarity
from mmcl.retrieval.faiss import specs
from mmcl.retrieval.faiss.contents import stored_vectors
from mmcl.retrieval.faiss.held_out import HeldOut
from mmcl.retrieval.index import Ids, MetaColumns, VectorShards
from mmcl.retrieval.inputs import BLOCK_BYTES, blocks, in_messages, prepared
from mmcl.retrieval.metadata import with_columns
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import log_progress, progress

CHOSEN = "chosen by the user"
"""The reason for a spec that is not ``auto``'s."""
_CROWDED = 4  # times the vectors that an index was built for
_HOLES = 0.25  # share of removed vectors that are still compared


def ids_and_columns(
    shards: VectorShards, ids: Ids | None, columns: MetaColumns | None, labels: Sequence[str | None] | None
) -> pa.Table:
    """Ids, labels and columns of vectors: those given in the place of their own.

    Raises:
        MmclError: ids, labels or columns that do not fit.
    """
    count = len(shards)
    table = shards.table() if ids is None else id_table(ids, count)
    if labels is not None:
        table = id_table(table["id"], count, labels)
    own = table.drop_columns(["id"])  # which those on disk may have
    return with_columns(with_columns(id_table(table["id"], count), own), columns)


def held_out(shards: VectorShards, similarity: Similarity, table: pa.Table) -> HeldOut:
    """The queries by which recall is measured, drawn from vectors that are to be indexed."""
    own = HeldOut.drawn(len(shards))
    name = lambda row: in_messages(shards, table["id"][int(own[row])].as_py())  # noqa: E731
    return HeldOut.of(prepared(shards.take(own), similarity, name), own, similarity)


def fill(
    index: Any,
    shards: VectorShards,
    table: pa.Table,
    spec: str,
    similarity: Similarity,
    held: HeldOut | None,
    show: bool | None,
) -> int:
    """Train the index if it must be, add every vector, and return how many it was trained on."""
    rows = np.arange(0) if index.is_trained else specs.training_rows(index, len(shards))
    try:
        if len(rows):
            with log_progress(f"train the index on {len(rows):,} vectors", None):
                index.train(_sample(shards, rows, similarity, table))  # which is not kept
        with progress("index", len(shards), "vectors", show) as advance:
            for first, block in blocks(shards, similarity, table):
                index.add(block)
                if held is not None:
                    held.extend(block, np.arange(first, first + len(block)))
                advance(len(block))
    except RuntimeError as error:
        raise MmclError(
            f"index spec '{spec}' cannot hold these {len(shards):,} vectors ({specs.reason(error)}); try spec='auto'"
        ) from None
    return len(rows)


def _sample(shards: VectorShards, rows: np.ndarray, similarity: Similarity, table: pa.Table) -> np.ndarray:
    """Prepared vectors at these positions, gathered bit by bit so that none is in memory twice."""
    result = np.empty((len(rows), shards.dim), np.float32)
    step = max(1, BLOCK_BYTES // (4 * shards.dim))
    for start in range(0, len(rows), step):
        here = rows[start : start + step]
        name = lambda row, here=here: in_messages(shards, table["id"][int(here[row])].as_py())  # noqa: E731
        result[start : start + step] = prepared(shards.take(here), similarity, name)
    return result


def held_out_again(index: Any, live: np.ndarray, similarity: Similarity) -> HeldOut | None:
    """Vectors drawn from those that an index holds at the positions ``live``; None if it cannot give vectors back."""
    try:
        own = live[HeldOut.drawn(len(live))]
        held = HeldOut.of(stored_vectors(index, own), own, similarity)
        rows = max(1, BLOCK_BYTES // (4 * index.d))
        for start in range(0, len(live), rows):
            some = live[start : start + rows]
            held.extend(stored_vectors(index, some), some)
    except MmclError:
        return None
    return held


def reason_to_rebuild(index: Any, about: dict[str, Any]) -> str | None:
    """Why an index should be built anew; None if there is no reason."""
    count, built = about["count"], about["count_when_built"]
    if about["removed"] > _HOLES * index.ntotal:
        return f"{about['removed']:,} of its {index.ntotal:,} vectors are removed, and still compared"
    if built and count > _CROWDED * built and specs.inverted_file(index) is not None:
        return f"its cells were made for {built:,} vectors and hold {count:,}"
    if about["spec"] == "Flat" and about["reason"] != CHOSEN and count > 2 * specs.EXACT_ROWS:
        return f"it compares a query with all of its {count:,} vectors, which an approximate one need not"
    return None

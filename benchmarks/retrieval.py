"""Indexes at equal recall, and what becomes of ours when it changes and is filtered.

Vectors (N, 384) of unit length lie around sqrt(N) centres, along directions of falling variance as embeddings have
them. Queries come from the same mixture and are never in an index; those that tune the contenders are not those that
measure them. Every section runs alone too: ``--only families filters``. What has been measured is written at once, a
contender of ``families`` each; of one that is not built within ``--budget`` seconds, how many rows it then had.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from measure import alternate, machine, show

from mmcl.retrieval import Index
from mmcl.retrieval.faiss.held_out import recalls
from mmcl.retrieval.faiss.tuning import least_effort, surely

K, RECALL, DIM = 10, 0.95, 384
THREADS = len(os.sched_getaffinity(0))
BLOCK = 10_000  # rows that a contender is given at a time
Found = dict[str, Any]
"""The ``rows`` of a section's table, and what else it found."""


class Mixture:
    """Vectors of unit length around centres.

    Args:
        rows: their number is the square of the centres'.
        dim: components.
    """

    def __init__(self, rows: int, dim: int = DIM) -> None:
        rng = np.random.default_rng(0)
        self._scale = ((1 + np.arange(dim)) ** -0.5).astype(np.float32)
        self._centres = rng.standard_normal((round(rows**0.5), dim), dtype=np.float32) * self._scale
        self._rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)

    def draw(self, count: int, seed: int) -> np.ndarray:
        """(count, D) float32."""
        rng = np.random.default_rng(seed)
        result = np.empty((count, len(self._scale)), np.float32)
        for start in range(0, count, 65_536):
            block = result[start : start + 65_536]
            noise = rng.standard_normal(block.shape, dtype=np.float32) * self._scale
            block[:] = (self._centres[rng.integers(0, len(self._centres), len(block))] + 0.7 * noise) @ self._rotation
            block /= np.linalg.norm(block, axis=1, keepdims=True)
        return result


@dataclass
class Data:
    """What the sections share: (N, D) corpus, queries to tune with, queries to measure with, and the seconds in which
    a contender has to be built."""

    mixture: Mixture
    corpus: np.ndarray
    tuning: np.ndarray
    queries: np.ndarray
    budget: float


def exact(queries: np.ndarray, corpus: np.ndarray, k: int = K) -> np.ndarray:
    """Positions (Q, k)."""
    found: np.ndarray = faiss.knn(queries, corpus, min(k, len(corpus)), faiss.METRIC_INNER_PRODUCT)[1]
    return found


class Contender(ABC):
    """An index that is built and searched by hand; ``effort`` is cells to visit or candidates to keep."""

    least, most, effort = K, 4_096, K

    @abstractmethod
    def add(self, first: int, block: np.ndarray) -> None:
        """Take in (n, D) vectors, whose positions count from ``first``."""

    @abstractmethod
    def search(self, queries: np.ndarray, threads: int) -> np.ndarray:
        """Positions (Q, 10)."""

    def fill(self, corpus: np.ndarray, seconds: float) -> int:
        """Take in a corpus, or what of it can be had in so many seconds. Returns the number of rows."""
        start = time.perf_counter()
        for first in range(0, len(corpus), BLOCK):
            if time.perf_counter() - start > seconds:
                return first
            self.add(first, corpus[first : first + BLOCK])
        return len(corpus)


class Faiss(Contender):
    """FAISS with the caller's own factory string."""

    def __init__(self, corpus: np.ndarray, spec: str) -> None:
        faiss.omp_set_num_threads(THREADS)
        self._index = faiss.index_factory(corpus.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
        cells = getattr(self._index, "nlist", 0)
        if cells:
            self.least, self.most = 1, cells
            self._index.train(corpus[np.random.default_rng(3).permutation(len(corpus))[: 64 * cells]])

    def add(self, first: int, block: np.ndarray) -> None:
        self._index.add(block)

    def search(self, queries: np.ndarray, threads: int) -> np.ndarray:
        faiss.omp_set_num_threads(threads)
        if hasattr(self._index, "nlist"):
            self._index.nprobe = self.effort
        else:
            self._index.hnsw.efSearch = self.effort
        found: np.ndarray = self._index.search(queries, K)[1]
        return found


class Usearch(Contender):
    """usearch with its defaults: bfloat16 vectors where the CPU has instructions for them."""

    def __init__(self, corpus: np.ndarray) -> None:
        from usearch.index import Index as UsearchIndex

        self._index = UsearchIndex(ndim=corpus.shape[1], metric="ip")

    def add(self, first: int, block: np.ndarray) -> None:
        self._index.add(np.arange(first, first + len(block), dtype=np.uint64), block, threads=THREADS)

    def search(self, queries: np.ndarray, threads: int) -> np.ndarray:
        self._index.expansion_search = self.effort
        found = self._index.search(queries, K, threads=threads).keys.astype(np.int64)
        return found.reshape(len(queries), -1)


class Hnswlib(Contender):
    """hnswlib with what its examples give: M 16, 200 candidates in building."""

    def __init__(self, corpus: np.ndarray) -> None:
        import hnswlib

        self._index = hnswlib.Index(space="ip", dim=corpus.shape[1])
        self._index.init_index(max_elements=len(corpus), ef_construction=200, M=16)

    def add(self, first: int, block: np.ndarray) -> None:
        self._index.add_items(block, np.arange(first, first + len(block)), num_threads=THREADS)

    def search(self, queries: np.ndarray, threads: int) -> np.ndarray:
        self._index.set_ef(max(K, self.effort))
        return self._index.knn_query(queries, K, num_threads=threads)[0].astype(np.int64)


class Ours(Contender):
    """`Index.build` with ``auto``, which tunes itself: to the corpus and points off it, or to queries."""

    def __init__(self, corpus: np.ndarray, tuning: np.ndarray | None = None) -> None:
        faiss.omp_set_num_threads(THREADS)
        self.index = Index.build(corpus, recall=RECALL, show_progress=False)
        if tuning is not None:
            self.index.tune(tuning, corpus)

    def fill(self, corpus: np.ndarray, seconds: float) -> int:
        return len(self.index)

    def add(self, first: int, block: np.ndarray) -> None:
        self.index.add(block, np.arange(first, first + len(block)))

    def search(self, queries: np.ndarray, threads: int) -> np.ndarray:
        faiss.omp_set_num_threads(threads)
        return self.index.search(queries, K)[0]


def families(data: Data) -> Iterator[Found]:
    """Queries/s, build time and memory of each index at the least effort that finds 0.95 of the ten nearest."""
    cells = 2 ** round(np.log2(4 * len(data.corpus) ** 0.5))
    builders: dict[str, Callable[[np.ndarray], Contender]] = {
        "mmcl auto": Ours,
        "mmcl auto, given queries": lambda corpus: Ours(corpus, data.tuning),
        f"IndexIVFFlat ({cells:,} cells)": lambda corpus: Faiss(corpus, f"IVF{cells},Flat"),
        "usearch": Usearch,
        "hnswlib": Hnswlib,
        "IndexHNSWFlat (M 32)": lambda corpus: Faiss(corpus, "HNSW32"),
    }
    nearest_tuning, nearest = exact(data.tuning, data.corpus), exact(data.queries, data.corpus)
    rows: list[dict[str, Any]] = []
    built: dict[str, Contender] = {}
    for name, build in builders.items():
        before, start = resident(), time.perf_counter()
        contender = build(data.corpus)
        filled = contender.fill(data.corpus, data.budget)
        seconds, megabytes = time.perf_counter() - start, (resident() - before) / 1e6
        rows.append({"index": name, "recall": "", "build s": seconds, "MB": megabytes, "rows": filled})
        if filled == len(data.corpus):
            built[name] = contender
            rows[-1] |= measured(contender, data, nearest_tuning, nearest)
        yield {"rows": rows}
    few = data.queries[:200]
    alone = {name: lambda one=one: [one.search(few[[at]], 1) for at in range(len(few))] for name, one in built.items()}
    batch = {name: lambda one=one: one.search(data.queries, THREADS) for name, one in built.items()}
    single, batched = alternate(alone, 5), alternate(batch, 5)
    for row in (row for row in rows if row["index"] in built):
        row |= {"queries/s, one by one": len(few) / single[row["index"]]}
        row |= {f"batched, {THREADS} threads": len(data.queries) / batched[row["index"]]}
    yield {"rows": rows, "auto": {name: one.index.info() for name, one in built.items() if isinstance(one, Ours)}}


def measured(contender: Contender, data: Data, nearest_tuning: np.ndarray, nearest: np.ndarray) -> dict[str, Any]:
    """The least effort that surely finds 0.95 on the queries that tune, and what it finds on the others."""
    if isinstance(contender, Ours):
        effort = contender.index.info().get("nprobe")
    else:
        tune(contender, data.tuning, nearest_tuning)
        effort = contender.effort
    start = time.perf_counter()
    found = recalls(contender.search(data.queries, THREADS), nearest, K)
    batch = len(data.queries) / (time.perf_counter() - start)
    return {"recall": round(float(found.mean()), 4), "effort": effort, f"batched, {THREADS} threads": batch}


def tune(contender: Contender, queries: np.ndarray, nearest: np.ndarray) -> None:
    """Set the least effort that surely finds 0.95, by the rule that ours goes by."""

    def reaches(effort: int) -> bool:
        contender.effort = effort
        return surely(recalls(contender.search(queries, THREADS), nearest, K), RECALL)

    contender.effort = least_effort(reaches, contender.least, contender.most) or contender.most


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory(data: Data) -> Iterator[Found]:
    """Peak memory of building from shards on disk, in a process of its own, beside that of the float32 vectors."""
    from mmcl.encoding.corpora.writer import VectorWriter

    count, dim = data.corpus.shape
    with tempfile.TemporaryDirectory() as folder:
        with VectorWriter(Path(folder) / "vectors", dim=dim, model=None) as writer:
            for start in range(0, count, 65_536):
                block = data.corpus[start : start + 65_536]
                writer.append(np.arange(start, start + len(block)), block)
        command = [sys.executable, __file__, "--build-from", str(Path(folder) / "vectors")]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    held = 4 * count * dim
    row = {"spec": answer["spec"], "peak MB": answer["bytes"] / 1e6, "float32 MB": held / 1e6}
    yield {"rows": [row | {"ratio": answer["bytes"] / held, "before MB": answer["before"] / 1e6}]}


def build_from(folder: str) -> None:
    """In a process of its own: build from shards and print how much the peak of memory grew."""
    from mmcl.encoding import open_vectors

    faiss.omp_set_num_threads(THREADS)
    vectors = open_vectors(folder)
    before = peak()
    index = Index.build(vectors, memory=int(0.45 * 4 * len(vectors) * vectors.dim), show_progress=False)
    print(json.dumps({"spec": index.spec, "bytes": peak() - before, "before": before}))


def peak() -> int:
    """The most bytes of memory that this process has held; ``getrusage`` would count its parent's at the fork too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def changes(data: Data) -> Iterator[Found]:
    """10% of the rows removed, 20% added, 5% replaced, against an index built of the outcome."""
    count = len(data.corpus)
    rng = np.random.default_rng(4)
    order = rng.permutation(count)
    gone, replaced = order[: count // 10], order[count // 10 : count // 10 + count // 20]
    added = data.mixture.draw(count // 5, seed=5)
    new = data.mixture.draw(len(replaced), seed=6)
    faiss.omp_set_num_threads(THREADS)
    index = Index.build(data.corpus, recall=RECALL, show_progress=False)
    start = time.perf_counter()
    index.remove(gone)
    index.add(added, np.arange(count, count + len(added)))
    index.upsert(new, replaced)
    seconds = time.perf_counter() - start
    vectors = np.concatenate([data.corpus, added])
    vectors[replaced] = new
    ids = np.setdiff1d(np.arange(len(vectors)), gone)
    vectors = vectors[ids]
    start = time.perf_counter()
    rebuilt = Index.build(vectors, ids=ids, recall=RECALL, show_progress=False)
    seconds_rebuilt = time.perf_counter() - start
    nearest = ids[exact(data.queries, vectors)]
    both = {"changed": index, "rebuilt": rebuilt}
    speed = alternate({name: lambda one=one: one.search(data.queries, K) for name, one in both.items()}, 5)
    rows = []
    for name, one in both.items():
        recall = float(recalls(one.search(data.queries, K)[0], nearest, K).mean())
        stated = one.info()["recall"]
        row = {"index": name, "rows": len(one), "stated recall": 1.0 if stated is None else stated, "recall": recall}
        rows.append(row | {"queries/s": len(data.queries) / speed[name]})
    yield {"rows": rows, "seconds to change": seconds, "seconds to build": seconds_rebuilt}


def filters(data: Data) -> Iterator[Found]:
    """Recall and speed where a condition leaves half of the rows, and ever fewer."""
    number = np.random.default_rng(7).permutation(len(data.corpus))
    faiss.omp_set_num_threads(THREADS)
    index = Index.build(data.corpus, columns={"number": number}, recall=RECALL, show_progress=False)
    rows = []
    for share in (1, 0.5, 0.05, 0.005, 0.0001):
        left = max(1, round(share * len(number)))
        where = f"number < {left}" if share < 1 else None
        allowed = np.flatnonzero(number < left)
        nearest = allowed[exact(data.queries, data.corpus[allowed])]
        start = time.perf_counter()
        found = index.search(data.queries, K, where=where)[0]
        seconds = time.perf_counter() - start
        found = np.where(found == None, -1, found).astype(np.int64)  # noqa: E711  # by element
        recall = float(recalls(found, nearest, K).mean())
        rows.append({"share": share, "rows": left, "recall": recall, "queries/s": len(data.queries) / seconds})
        yield {"rows": rows}


SECTIONS: dict[str, Callable[[Data], Iterator[Found]]] = {
    "memory": memory,
    "filters": filters,
    "changes": changes,
    "families": families,
}


def main() -> None:
    """Run the sections, print them, and write them to ``retrieval.json``, beside those of earlier runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=4_000, help="to measure with; half as many tune the contenders")
    parser.add_argument("--budget", type=float, default=500, help="seconds in which a contender has to be built")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--build-from", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build_from:
        build_from(args.build_from)
        return
    torch.set_num_threads(THREADS)
    mixture = Mixture(args.rows)
    draws = (args.rows, args.queries // 2, args.queries)
    data = Data(mixture, *(mixture.draw(count, seed) for seed, count in enumerate(draws, start=1)), args.budget)
    written = json.loads(args.out.read_text()) if args.out.exists() else {}
    failed = []
    for name in args.only:
        print(f"\n{name}: {(SECTIONS[name].__doc__ or '').strip()}", flush=True)
        start, found = time.perf_counter(), {"rows": []}
        try:
            for found in SECTIONS[name](data):
                sizes = {"rows": args.rows, "dim": DIM, "queries": args.queries, "budget": args.budget}
                took = round(time.perf_counter() - start, 1)
                written[name] = {"machine": machine(), "sizes": sizes, "seconds": took, "found": found}
                args.out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        except Exception:  # the other sections are measured all the same
            traceback.print_exc()
            failed.append(name)
        show(found["rows"])
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

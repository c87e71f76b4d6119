"""Exact search beside FAISS's IndexFlatIP: seconds, and whether both find the same.

Vectors of unit length around as many centres as the square root of their number, and queries of the same kind. Ids are
the same where scores differ by more than 1e-6.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import faiss
import numpy as np
import torch
from measure import alternate, report

from mmcl.retrieval import exact
from mmcl.retrieval.exact import exact_search
from mmcl.runtime.device import multiplies_bfloat16


def main() -> None:
    """Measure, print and write ``exact_search.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    corpus, queries = (
        clustered(args.documents, args.documents, args.dim),
        clustered(args.queries, args.documents, args.dim),
    )
    index = faiss.IndexFlatIP(args.dim)
    index.add(corpus)
    scores, ids = index.search(queries, args.k)
    rows: list[dict[str, Any]] = [{"search": "faiss IndexFlatIP"}]
    contenders = {"faiss IndexFlatIP": lambda: index.search(queries, args.k)}
    for dtype in ("float32", "bfloat16"):
        if dtype == "bfloat16" and not multiplies_bfloat16(torch.device("cpu")):
            continue
        name = f"mmcl, {dtype} products"
        contenders[name] = lambda dtype=dtype: search(queries, corpus, args.k, dtype)  # type: ignore[misc]
        rows.append({"search": name, **agreement(contenders[name](), ids, scores)})
    seconds = alternate(contenders, args.rounds)
    for row in rows:
        row["seconds"] = seconds[row["search"]]
        row["times faster"] = seconds["faiss IndexFlatIP"] / row["seconds"]
    report(__file__, rows, **vars(args), torch=torch.__version__, faiss=faiss.__version__)


def search(queries: np.ndarray, corpus: np.ndarray, k: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Exact search with products of one type."""
    exact.multiplies_bfloat16 = lambda device: dtype == "bfloat16"
    return exact_search(queries, corpus, k)


def agreement(found: tuple[np.ndarray, np.ndarray], ids: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The largest difference of scores, and the share of ids that are the same, of those that no tie leaves open."""
    positions, ours = found
    open_ = np.zeros(ids.shape, bool)
    close = np.abs(np.diff(scores, axis=1)) <= 1e-6
    open_[:, 1:] |= close
    open_[:, :-1] |= close
    open_[:, -1] = True  # the next one is not known
    return {
        "largest difference": float(np.abs(ours - scores).max()),
        "same ids": float((positions == ids)[~open_].mean()),
    }


def clustered(count: int, documents: int, dim: int) -> np.ndarray:
    """(count, dim) float32 of unit length."""
    centres = np.random.default_rng(0).standard_normal((round(documents**0.5), dim), dtype=np.float32)
    rng = np.random.default_rng(count)
    vectors = centres[rng.integers(len(centres), size=count)]
    for block in np.array_split(vectors, max(1, count // 65_536)):
        block += rng.standard_normal(block.shape, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


if __name__ == "__main__":
    main()

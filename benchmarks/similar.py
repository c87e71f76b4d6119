"""Mining, paraphrases, communities and k-means: how fast, beside the libraries that offer them, and is it the same?

python benchmarks/similar.py                               20,000 × 384 vectors
python benchmarks/similar.py --only mine --rows 50000

Vectors are those of retrieval.py, of unit length around centres; all begin where vectors are there, since the model
that makes them is the same for all. Mining: five negatives of each anchor, of the 50 nearest, below 95% of its
positive's cosine, beside sentence-transformers' ``mine_hard_negatives`` by products and by FAISS; its result is a table
in memory, ours a file. Paraphrases: the 10,000 best pairs, beside ``paraphrase_mining_embeddings``, which looks at the
100 nearest of each row. Communities: beside ``community_detection``. K-means: beside ``faiss.Kmeans`` and a search.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentence_transformers.util as theirs
import torch
from measure import alternate, show, write
from retrieval import DIM, Mixture

from mmcl.data.sources import open_source
from mmcl.retrieval.mining import Rules
from mmcl.retrieval.similar.clusters import communities, kmeans
from mmcl.retrieval.similar.items import Side
from mmcl.retrieval.similar.negatives import Options, Pairs, mine_negatives
from mmcl.retrieval.similar.pairs import UnitVectors
from mmcl.retrieval.similar.paraphrases import best_pairs

NEGATIVES, DEPTH, MARGIN = 5, 50, 0.05
PAIRS, SMALLEST = 10_000, 10
ITERATIONS = 25
Measured = tuple[dict[str, float], str]
"""Seconds of each contender, ours last, and how far the results are the same."""


def mine(vectors: np.ndarray, folder: Path, rounds: int) -> Measured:
    """Hard negatives of pairs: each anchor is its positive with noise."""
    noise = np.random.default_rng(1).standard_normal(vectors.shape, dtype=np.float32) / DIM**0.5
    anchors = vectors + 0.5 * noise
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    names = [[f"{side} {row}" for row in range(len(vectors))] for side in ("anchor", "positive")]
    stored = dict(zip(names[0], anchors, strict=True)) | dict(zip(names[1], vectors, strict=True))
    table = pa.table({"anchor": names[0], "positive": names[1]})
    pq.write_table(table, folder / "pairs.parquet")
    encoder = SimpleNamespace(
        name="stored", dim=DIM, modalities={"text"}, encode=lambda texts, *_, **__: _of(stored, texts)
    )
    model = SimpleNamespace(
        device=torch.device("cpu"),
        encode_query=lambda texts, **_: _of(stored, texts),
        encode_document=lambda texts, **_: _of(stored, texts),
        similarity=theirs.cos_sim,
        similarity_pairwise=theirs.pairwise_cos_sim,
        get_embedding_dimension=lambda: DIM,
    )
    rules = {"range_max": DEPTH, "relative_margin": MARGIN, "num_negatives": NEGATIVES}
    found: dict[str, Any] = {}

    def reference(use_faiss: bool) -> None:
        data = datasets.Dataset(table)
        found["theirs"] = theirs.mine_hard_negatives(data, model, **rules, use_faiss=use_faiss, verbose=False)

    def ours() -> None:
        pairs = Pairs(open_source(folder / "pairs.parquet"), Side("anchor"), Side("positive"))
        options = Options(duplicate_score=None)
        mine_negatives(
            encoder,  # type: ignore[arg-type]  # what it asks of an encoder
            *(pairs, folder / "mined.parquet", Rules(NEGATIVES, DEPTH, relative_margin=MARGIN)),
            options=options,
        )

    contenders: dict[str, Callable[[], object]] = {
        "sentence-transformers": lambda: reference(False),
        "sentence-transformers, FAISS": lambda: reference(True),
        "mmcl": ours,
    }
    seconds = alternate(contenders, rounds)
    expected: dict[str, list[str]] = {}
    for anchor, negative in zip(found["theirs"]["anchor"], found["theirs"]["negative"], strict=True):
        expected.setdefault(anchor, []).append(negative)
    mined = pq.read_table(folder / "mined.parquet").to_pylist()
    columns = ["negative", *(f"negative_{number}" for number in range(2, NEGATIVES + 1))]
    same = sum([row[name] for name in columns if row[name]] == expected.get(row["anchor"], []) for row in mined)
    return seconds, f"{same / len(mined):.2%} of the rows have the same negatives in the same order"


def paraphrases(vectors: np.ndarray, folder: Path, rounds: int) -> Measured:
    """The best pairs of a corpus."""
    tensor, found = torch.from_numpy(vectors), {}

    def reference() -> None:
        found["theirs"] = theirs.paraphrase_mining_embeddings(tensor, max_pairs=PAIRS)

    def ours() -> None:
        found["ours"] = best_pairs(UnitVectors(vectors), PAIRS, show_progress=False)

    seconds = alternate({"sentence-transformers": reference, "mmcl": ours}, rounds)
    expected = {(first, second) for _, first, second in found["theirs"]}
    pairs = set(zip(found["ours"].first.tolist(), found["ours"].second.tolist(), strict=True))
    lowest = [float(found["theirs"][-1][0]), float(found["ours"].scores[-1])]
    return (
        seconds,
        f"{len(pairs & expected):,} of {PAIRS:,} pairs are the same; the last have {lowest[0]:.5f} and {lowest[1]:.5f}",
    )


def groups(vectors: np.ndarray, folder: Path, rounds: int) -> Measured:
    """Communities around central rows."""
    sample = vectors[:2000] @ vectors[:2000].T
    threshold = float(np.quantile(sample[np.triu_indices(len(sample), 1)], 0.995))
    tensor, found = torch.from_numpy(vectors), {}

    def reference() -> None:
        found["theirs"] = theirs.community_detection(tensor, threshold, SMALLEST)

    def ours() -> None:
        found["ours"] = communities(UnitVectors(vectors), threshold, smallest=SMALLEST, show_progress=False)

    seconds = alternate({"sentence-transformers": reference, "mmcl": ours}, rounds)
    expected = {frozenset(rows) for rows in found["theirs"]}
    of_rows = found["ours"].of_rows
    mine = {frozenset(np.flatnonzero(of_rows == number).tolist()) for number in range(len(found["ours"].sizes))}
    return seconds, f"{len(mine & expected):,} of {len(expected):,} communities are the same, {len(mine):,} are ours"


def centres(vectors: np.ndarray, folder: Path, rounds: int) -> Measured:
    """Spherical k-means, with as many centres as the vectors were drawn around; the seed decides when it has converged,
    so both have the same."""
    k = round(len(vectors) ** 0.5)
    found: dict[str, float] = {}

    def reference() -> None:
        learned = faiss.Kmeans(DIM, k, niter=ITERATIONS, spherical=True, seed=0)
        learned.train(vectors)
        found["theirs"] = float(learned.index.search(vectors, 1)[0].mean())

    def ours() -> None:
        scores = kmeans(UnitVectors(vectors), k, iterations=ITERATIONS, seed=0, show_progress=False).scores
        found["ours"] = float(scores.mean())

    seconds = alternate({"faiss.Kmeans": reference, "mmcl": ours}, rounds)
    return seconds, f"mean cosine to the centre {found['theirs']:.5f} and {found['ours']:.5f}"


def _of(stored: dict[str, np.ndarray], texts: Sequence[str]) -> np.ndarray:
    return np.stack([stored[text] for text in texts])


TASKS = {"mine": mine, "paraphrases": paraphrases, "communities": groups, "kmeans": centres}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    vectors = Mixture(asked.rows).draw(asked.rows, seed=1)
    kept = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    rows = [row for row in kept if row["task"] not in asked.only]
    for name in asked.only:
        with tempfile.TemporaryDirectory() as folder:
            seconds, agreement = TASKS[name](vectors, Path(folder), asked.rounds)
        *others, ours = seconds.values()
        for contender, took in seconds.items():
            row = {"task": name, "by": contender, "rows": asked.rows, "seconds": took}
            rows.append(row | ({"times as fast": min(others) / ours, "result": agreement} if took == ours else {}))
        write(asked.out, rows, dim=DIM, rounds=asked.rounds, threads=threads)
    show(rows)


if __name__ == "__main__":
    main()

"""What users like next: `configs/two_tower_movielens.yaml` beside popularity, item cosines, BPR and ALS (`pip install
implicit`), and EASE, on MovieLens-100K.

Films of 4 stars or more; of each user with ten such or more the last fifth by time is the test; all films that stand in
the rows and that the user has not liked before are ranked. What each contender can choose (factors, regularisation, …)
is chosen by nDCG@10 on the last fifth of the training part, never on the test; ours by `--validate --set …`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import implicit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
from measure import report

import mmcl
from mmcl.config import load_config
from mmcl.data import samples
from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.evaluation import Scores, compare, recommendation
from mmcl.evaluation.tasks.recommendation import Choices, recommendation_of_rows

CONFIG = Path(__file__).parents[1] / "configs" / "two_tower_movielens.yaml"
HELD_OUT = 0.2
KS = (10, 20)
SHOWN = ("ndcg@10", "recall@20", "hit@10")


class Likes:
    """Rows of likes as a matrix.

    Attributes:
        matrix: (U, I) sparse, 1 where a user liked an item in the rows before.
    """

    def __init__(self, before: Rows, after: Rows) -> None:
        self.choices = Choices.of(after, [before], "user_id", "item_id")
        self.users, self.items = list(self.choices.users), list(self.choices.items)
        place = {item: number for number, item in enumerate(self.items)}
        pairs = [(row, place[item]) for row, user in enumerate(self.users) for item in self.choices.seen[user]]
        rows, columns = np.array(pairs).T
        ones = np.ones(len(pairs), dtype=np.float32)
        self.matrix = scipy.sparse.csr_matrix((ones, (rows, columns)), shape=(len(self.users), len(self.items)))

    def score(self, scores: np.ndarray, bootstrap: int) -> Scores:
        """Judge (U, I) scores, as the vectors of users by the axes that items are."""
        return recommendation(
            (self.users, scores.astype(np.float64)),
            (self.items, np.eye(len(self.items))),
            self.choices.chosen,
            self.choices.seen,
            KS,
            similarity="dot",
            bootstrap=bootstrap,
        )


def popularity(likes: Likes) -> np.ndarray:
    """How many like each item, for everybody."""
    return np.tile(likes.matrix.sum(axis=0), (len(likes.users), 1))


def item_cosine(likes: Likes, neighbours: int) -> np.ndarray:
    """The sum of the cosines of an item with those liked, of which each counts for its nearest ``neighbours``."""
    model = implicit.nearest_neighbours.CosineRecommender(K=neighbours, num_threads=1)
    model.fit(likes.matrix, show_progress=False)
    return np.asarray((likes.matrix @ model.similarity).todense())


def als(likes: Likes, factors: int, regularization: float, alpha: float) -> np.ndarray:
    """Implicit matrix factorisation (Hu et al. 2008)."""
    return _factors(
        likes,
        implicit.als.AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, iterations=15, random_state=0, num_threads=1
        ),
    )


def bpr(likes: Likes, factors: int, regularization: float, iterations: int) -> np.ndarray:
    """Bayesian personalised ranking (Rendle et al. 2009)."""
    return _factors(
        likes,
        implicit.bpr.BayesianPersonalizedRanking(
            factors=factors,
            regularization=regularization,
            iterations=iterations,
            learning_rate=0.05,
            random_state=0,
            num_threads=1,
        ),
    )


def _factors(likes: Likes, model: Any) -> np.ndarray:
    model.fit(likes.matrix, show_progress=False)
    return np.asarray(model.user_factors) @ np.asarray(model.item_factors).T


def ease(likes: Likes, weight: float) -> np.ndarray:
    """Linear regression of each item on all others, in closed form (Steck 2019, arXiv:1905.03375)."""
    gram = (likes.matrix.T @ likes.matrix).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += weight
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return likes.matrix @ weights


CONTENDERS: dict[str, tuple[Callable[..., np.ndarray], dict[str, list[Any]]]] = {
    "popularity": (popularity, {}),
    "BPR": (bpr, {"factors": [32, 64], "regularization": [0.01, 0.1], "iterations": [100, 200]}),
    "item cosine": (item_cosine, {"neighbours": [20, 50, 100, 200]}),
    "ALS": (als, {"factors": [16, 32, 64], "regularization": [0.1, 1.0, 10.0], "alpha": [1.0, 5.0]}),
    "EASE": (ease, {"weight": [50.0, 100.0, 200.0, 300.0, 500.0, 1000.0]}),
}


def chosen_on(likes: Likes, fit: Callable[..., np.ndarray], grid: dict[str, list[Any]]) -> dict[str, Any]:
    """The settings of a contender that are best on validation rows."""
    settings: Iterator[dict[str, Any]] = (
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    )
    return max(settings, key=lambda of: likes.score(fit(likes, **of), 0).metrics["ndcg@10"])


def validation(folder: Path) -> tuple[Path, Path]:
    """The training rows without each user's last fifth, and that fifth, whose users know no more than the former."""
    table = pq.read_table(samples.get("movielens") / "train.parquet")
    by_user: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        by_user[row["user_id"]].append(row)
    before, after = [], []
    for rows in by_user.values():
        kept = len(rows) - max(1, int(HELD_OUT * len(rows)))
        before += rows[:kept]
        after += [row | {"history": rows[kept]["history"]} for row in rows[kept:]]
    paths = folder / "before.parquet", folder / "after.parquet"
    for path, rows in zip(paths, (before, after), strict=True):
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return paths


def ours(train: str, split: str | None, test: Rows, before: Rows, changes: list[str], bootstrap: int) -> Any:
    """Scores of a model trained on ``train``, the seconds from the config to the model, and its size."""
    where = [f"data.train.source={train}", f"data.train.split={split or 'null'}", "evaluation.sources={}"]
    config = load_config(CONFIG, [*where, "training.device=cpu", *changes])
    start = time.perf_counter()
    model = mmcl.train(config, out=Path(tempfile.mkdtemp()) / "run").model
    seconds = time.perf_counter() - start
    scores = recommendation_of_rows(model, test, [before], ks=KS, bootstrap=bootstrap)
    return replace(scores, data=""), seconds, sum(weight.numel() for weight in model.parameters())


def main() -> None:
    """Choose, fit, judge, print and write ``recommendation.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--validate", action="store_true", help="judge ours on validation rows alone, and write nothing"
    )
    parser.add_argument("--set", action="append", default=[], help="override a setting of the config")
    args = parser.parse_args()
    paths = validation(Path(tempfile.mkdtemp()))
    held = [open_source(path) for path in paths]
    if args.validate:
        scores, seconds, _ = ours(str(paths[0]), None, held[1], held[0], args.set, 0)
        print({name: round(scores.metrics[name], 4) for name in SHOWN}, f"{seconds:.0f} s")
        return
    before, test = (open_source("sample:movielens", split=split) for split in ("train", "test"))
    validating, testing = Likes(*held), Likes(before, test)
    scored: dict[str, Scores] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, (fit, grid) in CONTENDERS.items():
        settings = chosen_on(validating, fit, grid)
        start = time.perf_counter()
        found = fit(testing, **settings)
        facts[name] = {"seconds": time.perf_counter() - start, "settings": settings}
        scored[name] = testing.score(found, 1000)
    scored["two_tower"], seconds, weights = ours("sample:movielens", "train", test, before, args.set, 1000)
    facts["two_tower"] = {"seconds": seconds, "parameters": weights}
    rows = []
    for name, scores in scored.items():
        row: dict[str, Any] = {"method": name}
        for metric in SHOWN:
            low, high = scores.intervals[metric]
            row[metric] = f"{scores.metrics[metric]:.3f} ({low:.3f} – {high:.3f})"
        rows.append(row | {"seconds": round(facts[name]["seconds"], 1)})
    tests = {
        name: compare({"user_to_item": scored[name]}, {"user_to_item": scored["two_tower"]}, SHOWN).to_dict()
        for name in ("item cosine", "ALS", "EASE")
    }
    about = {"users": len(testing.users), "items": len(testing.items), "contenders": facts, "two_tower_against": tests}
    report(__file__, rows, **about)


if __name__ == "__main__":
    main()

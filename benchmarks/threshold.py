"""From which cosine on do two sentences mean the same: does the precision of pairs that were held out lie inside the
stated interval as often as stated, and are the probabilities right?

STS-B and SICK-R with all-MiniLM-L6-v2, a score of 4 (of 5) or more being "the same". Again and again, half of the pairs
are given to `mmcl.evaluation.threshold` and the other half is held out. And of encoders that know nothing (random
vectors, MiniLM's architecture with random weights), how often is a number given at all.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import report, show

import mmcl
from mmcl.evaluation import open_sts, threshold
from mmcl.evaluation.metrics.calibration import calibration_error
from mmcl.evaluation.tasks.sentence_pairs import SentencePairs
from mmcl.evaluation.tasks.sts import pair_similarities

DATA = Path(__file__).parents[2] / "shared" / "data" / "sts.parquet"
SAME_FROM = 4
PRECISIONS = (0.9, 0.95, 0.99)
CONFIDENCES = (0.9, 0.95, 0.99)


def main() -> None:
    """Measure, print and write ``threshold.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=200, help="random halves of each set of pairs")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    minilm = mmcl.load("sample:minilm", dtype="float32")
    inside, probabilities, nothing, numbers = [], [], [], []
    for task in ("STSB", "SICKR"):
        pairs = open_sts(args.data, split=None, tasks=[task])
        same = pairs.score >= SAME_FROM
        scores = pair_similarities(minilm, pairs)
        numbers += in_words(task, scores, same)
        held_out, errors = coverage(task, scores, same, args.splits)
        inside += held_out
        probabilities.append(errors)
        for name, values in senseless(pairs).items():
            nothing.append({"pairs": task, "encoder": name} | abstentions(values, same, max(1, args.splits // 10)))
    report(__file__, inside, splits=args.splits, probabilities=probabilities, without_sense=nothing, all_pairs=numbers)
    for rows in (probabilities, nothing, numbers):
        print()
        show(rows)


def coverage(
    task: str, scores: np.ndarray, same: np.ndarray, splits: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row each precision and confidence, and one of the calibration."""
    found: dict[tuple[float, float | None], list[dict[str, float]]] = defaultdict(list)
    stated, held_out, kinds = [], [], []
    for seed in range(splits):
        given = np.random.default_rng(seed).permutation(len(same)) < len(same) // 2
        others, truth = scores[~given], same[~given]
        for confidence in CONFIDENCES:
            measured = threshold(scores[given], same[given], PRECISIONS, confidence=confidence, seed=seed)
            for cut in measured.cuts:
                if cut.threshold is not None and cut.intervals is not None:
                    precision = truth[others >= cut.threshold].mean()
                    low, high = cut.intervals["precision"]
                    values = {"inside": low <= precision <= high, "as precise": precision >= (cut.asked or 0)}
                    values |= {"precision": precision, "width": high - low, "threshold": cut.threshold}
                    values |= {"recall": (others[truth] >= cut.threshold).mean()}
                    found[confidence, cut.asked].append(values)
            if confidence == CONFIDENCES[0] and measured.calibration is not None:
                stated.append(measured.calibration.error)
                held_out.append(calibration_error(measured.calibration(others), truth))
                kinds.append(measured.calibration.kind)
    rows = [
        {"pairs": task, "asked": "best F1" if asked is None else asked, "confidence": confidence}
        | {"given": len(values := found[confidence, asked]) / splits}
        | {name: float(np.mean([value[name] for value in values])) for name in (values[0] if values else {})}
        for asked in (*PRECISIONS, None)
        for confidence in CONFIDENCES
    ]
    errors = {"pairs": task, "isotonic": kinds.count("isotonic") / len(kinds)}
    errors |= {"error stated": float(np.mean(stated)), "largest stated": max(stated)}
    errors |= {"error held out": float(np.mean(held_out)), "largest held out": max(held_out)}
    return rows, errors | {"held out below 0.03": float(np.mean(np.array(held_out) < 0.03))}


def senseless(pairs: SentencePairs) -> dict[str, np.ndarray]:
    """Similarities by encoders that know nothing."""
    torch.manual_seed(0)
    weights = mmcl.load("sample:minilm", dtype="float32")
    for name, parameter in weights.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
        else:
            torch.nn.init.constant_(parameter, float(name.endswith("LayerNorm.weight")))

    class Vectors:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.random.default_rng(0).standard_normal((len(texts), 384)).astype(np.float32)

    return {"random vectors": pair_similarities(Vectors(), pairs), "random weights": pair_similarities(weights, pairs)}


def abstentions(scores: np.ndarray, same: np.ndarray, draws: int) -> dict[str, Any]:
    """How often there is no number, of random halves."""
    none: dict[str, list[bool]] = defaultdict(list)
    for seed in range(draws):
        given = np.random.default_rng(seed).permutation(len(same)) < len(same) // 2
        for cut in threshold(scores[given], same[given], PRECISIONS, seed=seed).cuts:
            none["best F1" if cut.asked is None else f"{cut.asked}"].append(cut.threshold is None)
    return {f"none at {name}": float(np.mean(values)) for name, values in none.items()}


def in_words(task: str, scores: np.ndarray, same: np.ndarray) -> list[dict[str, Any]]:
    """What all pairs say."""
    rows = []
    for cut in threshold(scores, same, PRECISIONS).cuts:
        low, high = (cut.intervals or {}).get("precision", (float("nan"),) * 2)
        shares = {"precision": cut.precision, "interval": f"{low:.3f} – {high:.3f}"} if cut.threshold else {}
        rows.append(
            {"pairs": task, "asked": cut.asked or "best F1", "threshold": cut.threshold or cut.reason, **shares}
        )
    return rows


if __name__ == "__main__":
    main()

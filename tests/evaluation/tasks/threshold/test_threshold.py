from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy.stats import norm

from mmcl.evaluation import threshold
from mmcl.evaluation.tasks.threshold import threshold as module
from mmcl.evaluation.tasks.threshold.threshold import FEWEST
from mmcl.formats.threshold import Calibration
from mmcl.runtime.errors import MmclError

SHARE, DISTANCE = 0.3, 2.0


def drawn(seed: int, pairs: int = 1000, distance: float = DISTANCE):
    """Scores of unit normal densities around ``distance`` and 0, and labels."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < SHARE
    return rng.normal(distance * same), same


def truth(cut: float, prevalence: float = SHARE) -> float:
    right, wrong = prevalence * norm.sf(cut - DISTANCE), (1 - prevalence) * norm.sf(cut)
    return float(right / (right + wrong))


@pytest.mark.parametrize("at_least", [False, True])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_precision_of_held_out_pairs_lies_in_the_interval_as_often_as_stated(confidence, at_least, uncalibrated):
    """And, with ``at_least``, that of ever more pairs is so high as often as stated."""
    inside: dict[tuple, list[bool]] = {}
    precise: list[bool] = []
    for seed in range(60):
        options = {"confidence": confidence, "at_least": at_least}
        scores, same = drawn(1000 + seed)
        for cut in threshold(*drawn(seed), 0.8, **options).cuts:
            if cut.threshold is None:
                continue
            accepted = scores >= cut.threshold
            held_out = {"precision": same[accepted].mean(), "recall": accepted[same].mean()}
            held_out["f1"] = 2 * (accepted & same).sum() / (accepted.sum() + same.sum())
            for name, (low, high) in cut.intervals.items():
                assert low < cut.shares[name] < high
                inside.setdefault((cut.asked, name), []).append(low <= held_out[name] <= high)
            precise += [truth(cut.threshold) >= 0.8] * (cut.asked is not None)
    assert len(inside) == 6
    for values in inside.values():
        assert len(values) > 40
        assert np.mean(values) >= confidence - 2 * np.sqrt(confidence * (1 - confidence) / len(values))
    if at_least:
        assert np.mean(precise) >= confidence - 2 * np.sqrt(confidence * (1 - confidence) / len(precise))


@pytest.fixture
def uncalibrated(monkeypatch):
    """Without the probabilities, which take most of the time."""
    none = Calibration("logistic", {"slope": [1.0], "intercept": [0.0]}, 0.0)
    monkeypatch.setattr(module, "calibrate", lambda *arguments, **options: none)


def test_a_prevalence_to_come_moves_the_threshold_to_where_it_is_as_precise() -> None:
    scores, same = drawn(0, pairs=20_000)
    plain, rare = (threshold(scores, same, 0.8, prevalence=share) for share in (None, 0.1))
    assert rare.threshold > plain.threshold + 0.5
    low, high = rare.cuts[0].intervals["precision"]
    assert low <= truth(rare.threshold, 0.1) <= high
    assert truth(rare.threshold, 0.1) == pytest.approx(0.8, abs=0.1)
    assert (rare.prevalence, plain.prevalence) == (0.1, same.mean())
    assert rare.calibration(1.5) < plain.calibration(1.5)


def test_probabilities_are_those_of_the_densities() -> None:
    scores, same = drawn(1, pairs=8000)
    found = threshold(scores, same)
    grid = np.linspace(-1, 3, 20)
    expected = SHARE * norm.pdf(grid - DISTANCE) / (SHARE * norm.pdf(grid - DISTANCE) + (1 - SHARE) * norm.pdf(grid))
    np.testing.assert_allclose(found.calibration(grid), expected, atol=0.05)
    assert found.calibration.error < 0.02


def test_scores_that_tell_nothing_give_no_number() -> None:
    abstained = [threshold(*drawn(seed, pairs=500, distance=0.0), 0.5) for seed in range(40)]
    numbers = [found for found in abstained if any(cut.threshold is not None for cut in found.cuts)]
    assert len(numbers) <= 1  # by chance alone, one in forty is above it
    found = next(found for found in abstained if found not in numbers)
    assert "do not tell the same from the different" in found.cuts[0].reason
    assert found.calibration is None
    constant = threshold(np.ones(200), np.arange(200) < 100)
    assert all("the area under the ROC curve is 0.500" in cut.reason for cut in constant.cuts)


@pytest.mark.parametrize("positives", [1, FEWEST - 1])
def test_too_few_pairs_of_a_kind_give_no_number(positives) -> None:
    same = np.arange(500) < positives
    for labels in (same, ~same):
        found = threshold(labels.astype(float), labels)
        assert [cut.threshold for cut in found.cuts] == [None] * 4
        assert f"it takes {FEWEST} of both" in found.cuts[0].reason
        assert np.isnan(found.area)


def test_a_precision_that_cannot_be_shown_gives_no_number_but_what_it_takes() -> None:
    found = threshold(*drawn(0), (0.8, 0.95, 0.999))
    assert found.at(0.8).threshold is not None
    assert found.at(0.999).reason == (
        "precision 0.999 cannot be shown with 95% confidence: one half has 138 pairs that are the same and 361 "
        "different, which is too few"
    )
    assert np.isnan(found.at(0.999).precision)
    worse = threshold(*drawn(0, distance=1.0), 0.95).cuts[0]
    said = (
        r"precision 0.95 cannot be shown .*: that takes 59 pairs without an error; of so many on one half, \d+ are the"
    )
    assert re.match(said, worse.reason)
    assert worse.threshold is None
    saved = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert saved["cuts"][2]["threshold"] is saved["cuts"][2]["precision"] is None
    assert saved["cuts"][0]["intervals"]["precision"][0] < saved["cuts"][0]["precision"]


def test_a_threshold_that_the_other_half_refutes_is_none(monkeypatch) -> None:
    monkeypatch.setattr(module.Curve, "about", lambda curve, *asked: 0.5)
    cut = threshold(*drawn(0), 0.9).cuts[0]
    assert cut.threshold is None
    assert cut.reason.startswith("from 0.5 on, which one half of the pairs chose, the other half has a precision of 0.")


def test_an_f1_no_better_than_that_of_all_pairs_is_none() -> None:
    rng = np.random.default_rng(0)
    same = rng.random(3000) < 0.9
    found = threshold(rng.normal(0.4 * same), same, 0.95)
    assert found.area_interval[0] > 0.5
    assert found.at(None).threshold is None
    assert "taking all pairs for the same" in found.at(None).reason


def test_a_best_f1_at_which_most_matches_are_wrong_is_none() -> None:
    """As of an encoder with random weights, which knows which words two texts share."""
    found = threshold(*drawn(0, pairs=3000, distance=0.8))
    assert found.area_interval[0] > 0.6
    assert [cut.threshold for cut in found.cuts] == [None] * 4
    assert "it is not shown that more than a half are the same: precision 0." in found.at(None).reason


def test_the_same_seed_gives_the_same_and_the_order_of_the_pairs_is_no_matter() -> None:
    scores, same = drawn(3)
    one = threshold(scores, same, 0.9).to_dict()
    assert one == threshold(scores.tolist(), same.astype(int).tolist(), [0.9]).to_dict()
    assert one != threshold(scores, same, 0.9, seed=1).to_dict()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([0.1, 0.2, 0.3], [1, 0]), r"scores \(3,\) and same \(2,\)"),
        (([[0.1], [0.2]], [[1], [0]]), r"scores \(2, 1\)"),
        (([0.1, np.nan], [1, 0]), "the score of pair 1 is nan"),
        (([np.inf, 0.1], [1, 0]), "the score of pair 0 is inf"),
        (([0.1, 0.2, 0.3], [0, 1, 4]), r"same holds .*4.*; it takes booleans, such as score >= 4"),
        (([0.1, 0.2], [True, True]), "all 2 pairs are the same; give some of both kinds"),
        (([0.1, 0.2], [0, 0]), "all 2 pairs are different"),
        (([], []), "all 0 pairs"),
        (([0.1, 0.2], [0, 1], 1.5), "precision is 1.5; it lies between 0 and 1"),
        (([0.1, 0.2], [0, 1], 95), "precision is 95"),
    ],
)
def test_mistakes_get_one_line(arguments, said) -> None:
    with pytest.raises(MmclError, match=said):
        threshold(*arguments)


@pytest.mark.parametrize("option", ["confidence", "prevalence"])
def test_shares_out_of_range_are_refused(option) -> None:
    with pytest.raises(MmclError, match=f"{option} is 0; it lies between 0 and 1"):
        threshold(*drawn(0), **{option: 0})
    with pytest.raises(MmclError, match=r"precision 0.5 was not asked for; there are 0.9, 0.95, 0.99, best F1"):
        threshold(*drawn(0)).at(0.5)

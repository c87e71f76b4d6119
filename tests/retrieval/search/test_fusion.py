from __future__ import annotations

import math

import numpy as np
import pytest

from mmcl.retrieval.search.fusion import Fusion, Ranking, reciprocal_rank, weighted
from mmcl.runtime.errors import MmclError


def ranking(*rows: list[tuple[str | None, float]], floor: float | None = None) -> Ranking:
    ids = np.array([[name for name, _ in row] for row in rows], dtype=object)
    return Ranking(ids, np.array([[score for _, score in row] for row in rows], dtype=np.float32), floor)


VECTORS = ranking([("a", 0.9), ("b", 0.8), ("c", 0.5)])
WORDS = ranking([("c", 10.0), ("a", 4.0), (None, -math.inf)], floor=0.0)


def test_reciprocal_ranks_equal_those_computed_by_hand():
    ids, scores, _ = reciprocal_rank([VECTORS, WORDS], k=4)
    assert ids.tolist() == [["a", "c", "b", None]]
    expected = [1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62, -math.inf]
    np.testing.assert_allclose(scores[0], expected)
    ids, scores, _ = reciprocal_rank([VECTORS, WORDS], k=3, weights=[1, 3], constant=0)
    assert ids.tolist() == [["c", "a", "b"]]
    np.testing.assert_allclose(scores[0], [1 / 3 + 3, 1 + 3 / 2, 1 / 2])


def test_weighted_scores_equal_those_computed_by_hand():
    ids, scores, _ = weighted([VECTORS, WORDS], [0.6, 0.4], k=3)
    assert ids.tolist() == [["a", "b", "c"]]
    # Vectors are scaled from 0.5 … 0.9, words from 0 … 10.
    np.testing.assert_allclose(scores[0], [0.6 * 1 + 0.4 * 0.4, 0.6 * 0.75, 0.4 * 1], rtol=1e-6)


def test_what_a_full_ranking_lacks_counts_as_its_last_and_what_an_exhausted_one_lacks_as_the_floor():
    full = ranking([("c", 10.0), ("a", 4.0), ("d", 2.0)], floor=0.0)
    _, scores, _ = weighted([full], [1.0], k=3)
    np.testing.assert_allclose(scores[0], [1, 0.25, 0])
    _, scores, _ = weighted([WORDS], [1.0], k=2)
    np.testing.assert_allclose(scores[0], [1, 0.4], rtol=1e-6)


def test_a_ranking_of_weight_one_alone_is_itself():
    ids, _, _ = weighted([VECTORS, WORDS], [1, 0], k=3)
    assert ids.tolist() == VECTORS.ids.tolist()


def test_equal_scores_all_count_as_the_best_and_several_vectors_of_an_id_once():
    same = ranking([("x", 0.3), ("x", 0.3), ("y", 0.3)])
    ids, scores, _ = weighted([same], [1.0], k=3)
    assert ids.tolist() == [["x", "y", None]]
    assert scores.tolist() == [[1.0, 1.0, -math.inf]]


def test_queries_of_which_one_ranking_found_nothing_are_ranked_by_the_other():
    nothing = ranking([(None, -math.inf)] * 3, floor=0.0)
    for fused in (reciprocal_rank([VECTORS, nothing], k=3), weighted([VECTORS, nothing], [0.5, 0.5], k=3)):
        assert fused.ids.tolist() == VECTORS.ids.tolist()


def test_rankings_that_do_not_belong_together_are_refused():
    with pytest.raises(MmclError, match="rankings of 1 and 2 queries"):
        reciprocal_rank([VECTORS, ranking([("a", 1.0)], [("b", 1.0)])], k=1)
    with pytest.raises(MmclError, match="1 weights"):
        weighted([VECTORS, WORDS], [1.0], k=1)


def test_a_fusion_is_kept_in_a_file(tmp_path):
    fusion = Fusion((0.75, 0.25), 200, {"metric": "ndcg@10", "value": 0.5})
    fusion.save(tmp_path / "fusion.json")
    assert Fusion.load(tmp_path / "fusion.json") == fusion
    Fusion().save(tmp_path / "fusion.json")
    assert Fusion.load(tmp_path / "fusion.json") == Fusion()
    (tmp_path / "fusion.json").write_text("{}")
    with pytest.raises(MmclError, match=r"fusion\.json"):
        Fusion.load(tmp_path / "fusion.json")


def test_a_fusion_is_named_on_the_command_line():
    assert Fusion.parse("rrf") == Fusion()
    assert Fusion.parse("0.7, 0.3") == Fusion((0.7, 0.3))
    for wrong in ("both", "0.7", "-1,2", "0,0", "nan,1", "1,2,3"):
        with pytest.raises(MmclError, match="--fusion"):
            Fusion.parse(wrong)

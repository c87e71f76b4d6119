import numpy as np

from mmcl.evaluation import retrieval
from mmcl.evaluation.metrics.display import CORRELATION, RANKING
from mmcl.reports.results import arrow, from_evaluation, from_scores, split_key

RANKED = {"dev": RANKING}


def test_keys_are_source_direction_and_metric() -> None:
    assert split_key("dev/image_to_text/hit@1") == ("dev", "image_to_text", "hit@1")
    assert split_key("stsb/spearman") == ("stsb", "", "spearman")


def test_directions_read_as_people_write_them() -> None:
    assert arrow("image_to_text") == "image → text"


def test_a_flat_log_becomes_settings_and_directions() -> None:
    flat = {"dev/image_to_text/hit@1": 0.5, "dev/text_to_image/hit@1": 0.25, "stsb/spearman": float("nan")}
    (dev,) = from_evaluation(flat, {})
    assert dev.title == "dev"
    assert [(d.title, d.rows[0].value) for d in dev.directions] == [("image → text", 0.5), ("text → image", 0.25)]


def test_hit_rates_get_the_bars_and_a_rank_of_one_is_not_a_fraction() -> None:
    (setting,) = from_evaluation(
        {"dev/a_to_b/hit@1": 0.5, "dev/a_to_b/mrr": 0.6, "dev/a_to_b/median_rank": 1.0}, RANKED
    )
    assert [row.name for row in setting.directions[0].headline] == ["hit@1"]
    (other,) = from_evaluation({"dev/a_to_b/mrr": 0.6, "dev/a_to_b/median_rank": 1.0}, RANKED)
    assert [row.name for row in other.directions[0].headline] == ["mrr"]


def test_what_tells_of_the_space_is_no_fraction_and_gets_no_bar() -> None:
    (setting,) = from_evaluation({"dev/space/positive_cosine": 0.05, "dev/space/image/uniformity": -3.0}, RANKED)
    assert [direction.title for direction in setting.directions] == ["space", "space: image"]
    assert not any(direction.headline for direction in setting.directions)


def test_what_was_left_out_of_the_scores_is_said() -> None:
    vectors = np.eye(4, dtype=np.float32)
    qrels = {"a": {"x": 1, "lost": 1}, "b": {"y": 1}, "unknown": {"x": 1}}
    scores = retrieval((list("abcd"), vectors), (list("xyzw"), vectors), qrels, bootstrap=0)
    (setting,) = from_scores({"cranfield": {"query_to_document": scores}})
    (direction,) = setting.directions
    assert direction.size == "n = 2 queries, 4 candidates"
    assert [remark.split()[0] for remark in direction.remarks] == ["2", "1", "1"]
    assert all(row.interval is None for row in direction.rows)


def test_correlations_get_bars_and_the_one_over_all_tasks_is_their_average() -> None:
    (setting,) = from_evaluation(
        {"dev/STSB/spearman": 0.8, "dev/SICKR/spearman": 0.6, "dev/spearman": 0.7}, {"dev": CORRELATION}
    )
    assert [direction.title for direction in setting.directions] == ["STSB", "SICKR", "average"]
    assert [[row.value for row in direction.headline] for direction in setting.directions] == [[0.8], [0.6], [0.7]]
    assert not setting.directions[0].headline[0].is_fraction

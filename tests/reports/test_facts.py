from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from mmcl.reports.facts import History, facts
from mmcl.runtime.progress import duration
from mmcl.training.run import Run

Steps: TypeAlias = Callable[..., list[dict[str, Any]]]
FakeRun: TypeAlias = Callable[..., Run]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (48, "48 s"),
        (59.7, "1 min 0 s"),
        (192.4, "3 min 12 s"),
        (3599.6, "1 h 0 min"),
        (19_230, "5 h 20 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_finished_run_tells_the_evaluation_of_its_model(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    step, values = History.of(fake_run(tmp_path, steps(), step=20)).evaluation()
    assert step == 20
    assert values["dev/image_to_text/hit@1"] == 0.21


def test_an_unfinished_run_tells_its_last_evaluation(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    history = History.of(fake_run(tmp_path, steps()))
    assert history.evaluation()[0] == 40
    assert "40, after 2 of 10 epochs" in history.unfinished()


def test_a_model_from_a_step_that_was_not_judged(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    assert History.of(fake_run(tmp_path, steps(), step=37)).evaluation()[0] == 40


def test_the_rate_is_the_median_of_the_logged_ones(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    found = dict(facts(History.of(fake_run(tmp_path, steps(3), step=30))))
    assert found["Time"] == "3 min 12 s, 1,001 rows/s (median)"


def test_a_run_with_one_tower(tmp_path: Path, steps: Steps, fake_run: FakeRun, config: dict) -> None:
    config = {**config, "model": {"text": {"name": "sample:minilm", "frozen": True}}}
    found = dict(facts(History.of(fake_run(tmp_path, steps(), config=config))))
    assert found["Text tower"] == "sample:minilm, pretrained, frozen, linear head"
    assert "Image tower" not in found


def test_a_run_from_a_full_model_names_it_and_no_tower_of_the_defaults(
    tmp_path: Path, steps: Steps, fake_run: FakeRun, config: dict
) -> None:
    model = {"name": "ViT-B-32/laion2b_s34b_b79k", "image": {"lora": {"rank": 4}}, "text": {"frozen": True}}
    found = dict(facts(History.of(fake_run(tmp_path, steps(), config={**config, "model": model}))))
    assert found["Model"] == "started from ViT-B-32/laion2b_s34b_b79k"
    assert (found["Image tower"], found["Text tower"]) == ("LoRA of rank 4", "frozen")
    towers = {"question": {"modality": "text"}, "answer": {"modality": "text", "frozen": True}}
    model = {"name": model["name"], "towers": towers}
    found = dict(facts(History.of(fake_run(tmp_path / "named", steps(), config={**config, "model": model}))))
    assert found["Tower answer"] == "frozen"
    assert "Tower question" not in found
    assert "Embedding" not in found  # the config's 256 is a default; the model has its own


def test_weights_are_called_pretrained_only_where_some_are_named(
    tmp_path: Path, steps: Steps, fake_run: FakeRun, config: dict
) -> None:
    model = {
        "image": {"name": "open_clip:ViT-B-32", "pretrained": "laion2b_s34b_b79k", "freeze_blocks": 3},
        "text": {"name": "open_clip:ViT-B-32"},
    }
    data = {**config["data"], "mix": [{"source": "more.csv"}]}
    method = {"name": "clip", "teacher": {"name": "runs/large"}}
    config = {**config, "model": model, "data": data, "method": method}
    found = dict(facts(History.of(fake_run(tmp_path, steps(), config=config))))
    assert found["Image tower"].startswith("open_clip:ViT-B-32, pretrained, first 3 blocks frozen")
    assert found["Text tower"].startswith("open_clip:ViT-B-32, from scratch")
    assert " and more.csv" in found["Data"]
    assert "teacher: runs/large (weight: 1.0)" in found["Method"]


def test_settings_of_a_method_may_have_parts_without_a_name(
    tmp_path: Path, steps: Steps, fake_run: FakeRun, config: dict
) -> None:
    method = {"name": "simcse", "mlm": {"weight": 0.2}, "matryoshka": {"dims": [64, 32]}}
    values = {**config, "method": method, "model": {"text": {"name": "scratch"}}}
    values["data"] = {"train": config["data"]["train"], "columns": {"text": "text"}}
    values.pop("evaluation", None)
    found = dict(facts(History.of(fake_run(tmp_path, steps(), config=values))))["Method"]
    assert found.startswith("simcse (")
    assert "mlm: (weight: 0.2, probability: 0.15)" in found
    assert "matryoshka: (dims: 64 32)" in found


def test_a_method_tells_what_is_on_and_what_was_turned_off(
    tmp_path: Path, steps: Steps, fake_run: FakeRun, config: dict
) -> None:
    usual = dict(facts(History.of(fake_run(tmp_path, steps(), config=config))))["Method"]
    assert usual == "clip (learn temperature: yes)"
    method = {"name": "clip", "temperature": 0.05, "learn_temperature": False, "label_smoothing": 0.1}
    found = dict(facts(History.of(fake_run(tmp_path, steps(), config={**config, "method": method}))))["Method"]
    assert found == "clip (temperature: 0.05, learn temperature: no, label smoothing: 0.1)"

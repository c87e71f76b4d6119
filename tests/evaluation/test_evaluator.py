"""Evaluators by name: which metrics they have, which of these to show, and which value is the better one."""

from __future__ import annotations

import json
import sys

import pytest

from mmcl.config import Config, load_config
from mmcl.config.evaluation import EVALUATORS, EvaluationConfig
from mmcl.evaluation.evaluator import evaluator_of
from mmcl.reports.judged import judge_run
from mmcl.reports.results import from_scores
from mmcl.runtime.errors import MmclError
from mmcl.training import train

SOURCES = {"dev": {"source": "x"}, "sts": {"source": "y", "task": "sts", "tasks": ["one", "two"]}}


@pytest.mark.parametrize(
    ("key", "higher", "headline", "summary"),
    [
        ("dev/image_to_text/hit@1", True, True, True),
        ("dev/image_to_text/hit@5", True, False, True),
        ("dev/query_to_document/ndcg@10", True, True, True),
        ("dev/text_to_image/median_rank", False, False, True),
        ("dev/text_to_image/map", True, False, False),
        ("dev/space/image/uniformity", True, False, False),
        ("sts/spearman", True, True, True),
        ("sts/one/spearman", True, True, True),
        ("sts/pearson", True, False, False),
    ],
)
def test_an_evaluator_says_which_metrics_to_show_and_which_value_is_better(key, higher, headline, summary):
    kind = evaluator_of(key, EvaluationConfig.model_validate({"sources": SOURCES}))
    assert (kind.higher_is_better(key), kind.is_headline(key), kind.in_summary(key)) == (higher, headline, summary)


def test_the_keys_of_an_evaluator_are_what_a_checkpoint_may_be_chosen_by():
    settings = EvaluationConfig.model_validate({"sources": SOURCES}).sources
    sts = EVALUATORS["sts"].metrics(settings["sts"], (1,))
    assert sts == [f"{of}{by}" for of in ("", "one/", "two/") for by in ("spearman", "pearson")]
    retrieval = EVALUATORS["retrieval"].metrics(settings["dev"], (1, 7))
    for key in (*sts, *retrieval):
        name = f"{'sts' if key in sts else 'dev'}/{key}"
        EvaluationConfig.model_validate({"sources": SOURCES, "ks": (1, 7), "best": name})
    assert "image_to_text/hit@7" in retrieval
    named = {"sources": SOURCES, "best": "dev/question_to_answer/hit@1"}  # the towers' names are the model's
    assert EvaluationConfig.model_validate(named).best == named["best"]
    with pytest.raises(ValueError, match="no metric 'dev/question_to_answer/hit@2' will be measured"):
        EvaluationConfig.model_validate(named | {"best": "dev/question_to_answer/hit@2"})


PLUG_IN = '''
from typing import Literal

from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.evaluation.evaluator import Evaluator


class CountConfig(EvaluationSourceConfig):
    task: Literal["count"] = "count"
    factor: float = 2.0
    """What the count is multiplied by."""


class Count(Evaluator):
    Config = CountConfig
    headlines = ("parameters",)
    lower_is_better = ("parameters",)

    def __init__(self, settings):
        self.source, self.factor = settings.source, settings.factor

    @classmethod
    def open(cls, settings, setup):
        return cls(settings)

    @classmethod
    def metrics(cls, settings, ks):
        return ["parameters"]

    def evaluate(self, encoder, *, warn=True):
        return {"parameters": self.factor * sum(weight.numel() for weight in encoder.parameters())}
'''


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """An evaluator of another package, as pip would install it."""
    info = tmp_path / "counts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmcl.evaluators]\ncount = counts_:Count\n")
    (tmp_path / "counts_.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(tmp_path)
    EVALUATORS.__dict__.pop("plugins", None)
    yield
    EVALUATORS.__dict__.pop("plugins", None)
    EVALUATORS._loaded.pop("count", None)
    sys.modules.pop("counts_", None)


def test_an_evaluator_of_another_package_judges_a_run_and_its_settings_are_checked(plug_in, shapes_config, tmp_path):
    source = {"source": "any", "task": "count", "factor": 3}
    shapes_config["evaluation"] = {"sources": {"size": source}, "best": "size/parameters"}
    config = load_config(shapes_config, ["training.epochs=0.1"])
    run = train(config, out=tmp_path / "run")
    assert run.metrics["size/parameters"] == 3 * sum(weight.numel() for weight in run.model.parameters())
    (setting,) = from_scores(judge_run(run).scores)
    assert [(row.name, row.value) for row in setting.directions[0].rows] == [
        ("parameters", run.metrics["size/parameters"])
    ]
    assert load_config(tmp_path / "run" / "config.yaml").evaluation == config.evaluation
    with pytest.raises(MmclError, match=r"unknown key 'evaluation\.sources\.size\.facto'; did you mean 'factor'\?"):
        load_config(shapes_config, ["evaluation.sources.size.facto=1"])
    with pytest.raises(MmclError, match=r"'evaluation\.sources\.size\.task' is 'cont'; did you mean 'count'\?"):
        load_config(shapes_config, ["evaluation.sources.size.task=cont"])
    with pytest.raises(MmclError, match=r"no metric 'size/parametres'.*; did you mean 'size/parameters'"):
        load_config(shapes_config, ["evaluation.best=size/parametres"])
    assert "What the count is multiplied by." in json.dumps(Config.model_json_schema())


def test_sources_as_an_earlier_version_wrote_them_are_read():
    """It wrote the settings of both tasks."""
    sources = {
        "dev": {"source": "x", "task": "retrieval", "tasks": [], "self_matches": "drop"},
        "sts": {"source": "y", "task": "sts", "tasks": ["one"], "self_matches": None},
    }
    read = EvaluationConfig.model_validate({"sources": sources}).sources
    assert (read["dev"].self_matches, read["sts"].tasks) == ("drop", ["one"])

"""A method and an evaluator of another package, whose metrics nobody here knows, get a full log and report."""

from __future__ import annotations

import re
import sys

import pytest

from mmcl.config.evaluation import EVALUATORS
from mmcl.config.methods import METHODS
from mmcl.reports import judge_run, write_run_report
from mmcl.training import train

MODULE = """
from typing import Literal

from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.config.methods import MethodConfig
from mmcl.data.batches.views import View
from mmcl.evaluation.evaluator import Evaluator
from mmcl.evaluation.measured import Measures, SourceResults
from mmcl.evaluation.metrics.display import Display
from mmcl.evaluation.shown import Hit, Search
from mmcl.methods.base import Loss, Method


class PullConfig(MethodConfig):
    name: Literal["pull"] = "pull"


class Pull(Method):
    Config = PullConfig
    fractions = {"agreement": "Agreement of the two"}

    @classmethod
    def columns_of(cls, config):
        return {"image": "image"}

    def views(self):
        return {"image": View("image", "image", self.augment, count=2)}

    def embed(self, inputs):
        return {"image": self.encoder.embedder("image")(**inputs["image"])}

    def loss(self, outputs, step):
        first, second = outputs.embeddings["image"].unflatten(0, (-1, 2)).unbind(1)
        return Loss((first - second).square().sum(dim=1).mean())

    def metrics(self, outputs):
        return {"agreement": 0.25, "oddness": 3.0}

    def compared_with(self, extra=0):
        return "one other view"

    def card(self):
        return {"views per image": 2}


class LeanConfig(EvaluationSourceConfig):
    task: Literal["lean"] = "lean"


class Lean(Evaluator):
    Config = LeanConfig
    headlines = ("kilobytes",)
    lower_is_better = ("kilobytes",)
    source = "nothing"

    @classmethod
    def open(cls, settings, setup):
        return cls()

    @classmethod
    def metrics(cls, settings, ks):
        return ["kilobytes", "layers"]

    def evaluate(self, encoder, *, warn=True):
        return {"kilobytes": 123.0, "layers": 7.0}


class GuessConfig(EvaluationSourceConfig):
    task: Literal["guess"] = "guess"


class Guess(Lean):
    Config = GuessConfig
    headlines = ("luck",)
    display = Display(fractions=("luck",), definitions=(("Luck", "How often a guess is right."),))

    @classmethod
    def metrics(cls, settings, ks):
        return ["luck"]

    def evaluate(self, encoder, *, warn=True):
        return {"luck": 0.5}

    @classmethod
    def judge(cls, settings, encoder, config):
        interval, chance = {"luck": (0.375, 0.625)}, {"luck": 0.125}
        found = Measures({"luck": 0.5}, cls.shown(), interval, chance, "of 16 guesses", ["lost 2"])
        return SourceResults({"": found}, [Search("which one", [Hit("this one", 0.75, None, True)])])
"""

ENTRY_POINTS = "[mmcl.methods]\npull = pulls_:Pull\n[mmcl.evaluators]\nlean = pulls_:Lean\nguess = pulls_:Guess\n"


@pytest.fixture
def plug_ins(tmp_path, monkeypatch):
    """Another package, as pip would install it."""
    info = tmp_path / "pulls-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pulls\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "pulls_.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (METHODS, EVALUATORS):
        registry.__dict__.pop("plugins", None)
    yield
    for registry, names in ((METHODS, ["pull"]), (EVALUATORS, ["lean", "guess"])):
        registry.__dict__.pop("plugins", None)
        for name in names:
            registry._loaded.pop(name, None)
    sys.modules.pop("pulls_", None)


def test_a_run_of_another_packages_method_and_evaluators_has_a_full_log_and_report(
    plug_ins, shapes_config, tmp_path, caplog
):
    caplog.set_level("INFO")
    config = {
        "name": "odd",
        "method": "pull",
        "data": shapes_config["data"],
        "model": {key: value for key, value in shapes_config["model"].items() if key != "text"},
        "training": shapes_config["training"] | {"epochs": 0.1, "log_every": 2},
        "evaluation": {
            "sources": {name: {"source": "any", "task": name} for name in ("lean", "guess")},
            "best": "lean/kilobytes",
        },
    }
    run = train(config, out=tmp_path / "run", show_progress=False)
    assert "one other view" in caplog.text
    assert "lean/kilobytes 123.0000" in caplog.text
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "views per image" in card
    assert "kilobytes" in card

    page = write_run_report(run, judge_run(run)).read_text(encoding="utf-8")
    results = page.partition('<section id="results">')[2].partition("<summary>All metrics")[0]
    text = " ".join(re.sub(r"<[^>]*>", " ", results).split())
    assert "kilobytes 123" in text
    assert "Of kilobytes the lower value is the better one." in text
    assert "layers" not in text  # no headline
    assert "layers" in page
    assert "of 16 guesses" in text
    assert "luck 50.0% 37.5–62.5 50.0% 12.5%" in text  # value, interval, before training, chance
    assert "lost 2." in text
    assert results.count('class="length"') == 1  # a bar for the fraction alone
    assert "Agreement of the two: 0.25 at step" in page or "Agreement of the two: from 0.25" in page
    assert "Oddness: " in page
    assert "guess: luck: " in page
    assert "which one" in page
    assert "How often a guess is right." in page
    assert "hit@k" not in page

"""A finished run judged for its report: by each evaluator of its config, with intervals, chance and examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmcl.config.evaluation import EVALUATORS
from mmcl.evaluation.evaluator import Evaluator
from mmcl.evaluation.measured import ByDirection, Measured, SourceResults, by_direction
from mmcl.evaluation.shown import Mistake, Search
from mmcl.training.run import Run


@dataclass
class Judged:
    """What the model of a run does on the sources that its config judges by.

    Attributes:
        scores: {source: {direction: what was measured}}, or scores that know their directions.
        searches: queries of the first source that has any, with their results.
        mistakes: wrong answers on that source, the worst first.
    """

    scores: dict[str, Mapping[str, Measured] | ByDirection] = field(default_factory=dict)
    searches: list[Search] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)


def judge_run(run: Run) -> Judged:
    """Judge the model of a finished run on every source of ``evaluation.sources``, each as its evaluator does.

    Of an evaluator that has nothing to add to what training measured, that is taken.

    Raises:
        MmclError: the model or a source cannot be read.
    """
    encoder, judged = run.model, Judged()
    for name, source in run.config.evaluation.sources.items():
        evaluator: type[Evaluator] = EVALUATORS[source.task]
        found = evaluator.judge(source, encoder, run.config)
        if found is None:
            measured = {key: value for key, value in run.metrics.items() if key.startswith(f"{name}/")}
            flat = {key.removeprefix(f"{name}/"): value for key, value in measured.items()}
            found = SourceResults(by_direction(flat, evaluator.shown()))
        judged.scores[name] = found.scores
        if not judged.searches:
            judged.searches, judged.mistakes = found.searches, found.mistakes
    return judged

"""The report of a run: one HTML file that opens offline and runs no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import jinja2

from mmcl.config.evaluation import EVALUATORS
from mmcl.config.load import to_yaml
from mmcl.config.methods import METHODS
from mmcl.evaluation.measured import ByDirection, Measured
from mmcl.evaluation.shown import Mistake, Search
from mmcl.reports import facts, results
from mmcl.reports.judged import Judged
from mmcl.reports.page import page_environment
from mmcl.reports.plots import learning_curves
from mmcl.runtime.files import atomic_file
from mmcl.training.run import Run, read_lines


def write_run_report(run: Run, judged: Judged | None = None) -> Path:
    """Write ``report.html`` into the folder of a run, finished or not, from what lies there.

    Args:
        run: whose.
        judged: what :func:`mmcl.reports.judge_run` found, for intervals, searches and mistakes. Without it the metrics
            of the training log are shown.
    """
    found = judged or Judged()
    return write_report(
        run.folder / "report.html",
        run,
        title=run.config.name,
        scores=found.scores,
        searches=found.searches,
        mistakes=found.mistakes,
    )


def write_report(
    path: Path,
    run: Run,
    *,
    title: str,
    scores: Mapping[str, Mapping[str, Measured] | ByDirection] = {},
    searches: Sequence[Search] = (),
    mistakes: Sequence[Mistake] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write one HTML file with results, searches, mistakes, learning curves and settings; sections without content
    are left out.

    Args:
        path: the file; replaced if it exists.
        run: whose config, metrics and model card the report shows. The model itself is not loaded.
        title: plain text, as everything here: it is escaped.
        scores: {what the model was judged on: {direction: Scores}, or StsScores, or what else is
            :class:`mmcl.evaluation.measured.Measured`}. Without them the run's own evaluation leads.
        searches: queries with their results.
        mistakes: the wrong answers worth looking at, in the order given.
        notes: sentences to stand at the top.

    Returns:
        ``path``.
    """
    history = facts.History.of(run)
    step, evaluation = history.evaluation()
    skipped = read_lines(run.folder / "skipped.jsonl")
    sources = history.config.evaluation.sources
    displays = {name: EVALUATORS[source.task].shown() for name, source in sources.items()}
    start = history.start
    settings = results.from_scores(scores, start) if scores else results.from_evaluation(evaluation, displays, start)
    template = _environment().get_template("report.html.j2")
    page = template.render(
        title=title,
        history=history,
        notes=[*filter(None, [history.unfinished()]), *notes],
        settings=settings,
        measured_in_training=step if evaluation and not scores else None,
        searches=searches,
        mistakes=mistakes,
        plots=learning_curves(
            history.lines,
            displays,
            METHODS[history.config.method.name].fractions,
            best=history.config.evaluation.best,
            step=history.training.get("step"),
        ),
        step_is_marked=bool(evaluation and history.training),
        facts=facts.facts(history),
        definitions=results.definitions(settings, displays.values()),
        skipped_count=len(skipped),
        skipped=facts.skipped(skipped),
        config=to_yaml(run.config),
    )
    with atomic_file(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


@cache
def _environment() -> jinja2.Environment:
    environment = page_environment()
    environment.filters |= {"value": _value, "interval": _interval, "chance": _chance, "start": _start, "along": _along}
    return environment


def _value(row: results.Row) -> str:
    return _percent(row.value) if row.is_fraction else _number(row.value)


def _interval(row: results.Row) -> str:
    if row.interval is None:
        return ""
    low, high = row.interval
    return f"{100 * low:.1f}–{100 * high:.1f}" if row.is_fraction else f"{_number(low)}–{_number(high)}"


def _start(row: results.Row) -> str:
    return "" if row.start is None else _value(replace(row, value=row.start))


def _chance(row: results.Row) -> str:
    if row.chance is None:
        return ""
    return "<0.1%" if row.is_fraction and 0 < row.chance < 0.0005 else _value(replace(row, value=row.chance))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0") if abs(value) >= 1 else f"{value:.4g}"


def _along(fraction: float) -> str:
    """A place on the scale of the bars, as an SVG length."""
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}%" if math.isfinite(fraction) else "0%"

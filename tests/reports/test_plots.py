import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias
from xml.etree import ElementTree

import matplotlib
import numpy as np

from mmcl.evaluation.metrics.display import RANKING
from mmcl.reports.plots import POINTS, Curve, draw, learning_curves

Steps: TypeAlias = Callable[..., list[dict[str, Any]]]


def drawn(svg: str, variable: str = "--series-1") -> np.ndarray:
    """(N, 2) points of the line drawn in a colour of the page."""
    path = re.search(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\({variable}\)', svg)
    assert path is not None
    return np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path[1]), dtype=float)


def test_the_line_goes_through_the_values() -> None:
    rng = np.random.default_rng(0)
    at, values = np.sort(rng.choice(1000, 20, replace=False)).astype(float), rng.normal(size=20)
    points = drawn(draw([Curve(at, values)], prefix="p"))
    for axis, numbers in enumerate((at, values)):
        slope, offset = np.polyfit(numbers, points[:, axis], 1)
        np.testing.assert_allclose(points[:, axis], slope * numbers + offset, atol=1e-3)
        assert slope > 0 if axis == 0 else slope < 0  # SVG's y goes down


def test_long_curves_are_shown_as_means_of_stretches() -> None:
    values = np.random.default_rng(0).normal(size=10 * POINTS)
    svg = draw([Curve(np.arange(10.0 * POINTS), values)], prefix="p")
    points = drawn(svg)
    assert len(points) <= POINTS
    correlation = np.corrcoef(values.reshape(POINTS, 10).mean(1)[: len(points)], points[:, 1])
    assert len(points) < POINTS or correlation[0, 1] < -0.999


def test_colours_and_typeface_are_the_pages() -> None:
    svg = draw([Curve(np.arange(3.0), np.arange(3.0), name) for name in ("a", "b")], prefix="p", mark=2)
    assert not re.findall(r"#0[1-6]0[1-6]0[1-6]", svg)
    assert {"var(--series-1)", "var(--series-2)", "var(--muted)"} <= set(re.findall(r"var\(--[\w-]+\)", svg))
    assert "<text" in svg  # text, not outlines of one typeface
    assert "metadata" not in svg


def test_labels_are_plain_text() -> None:
    svg = draw([Curve(np.arange(2.0), np.arange(2.0), "cost $x^2$ & <b>")], prefix="p")
    assert "cost $x^2$ & <b>" in ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter()]


def test_settings_of_matplotlib_stay_as_they_were(steps: Steps) -> None:
    before = dict(matplotlib.rcParams)
    learning_curves(steps(), {}, {})
    assert dict(matplotlib.rcParams) == before


def test_plots_stand_in_reading_order(steps: Steps) -> None:
    lines = [{**line, "bias": -10.0} if "loss" in line else line for line in steps()]
    titles = [
        plot.title for plot in learning_curves(lines, {"dev": RANKING}, {"accuracy": "Accuracy within the batch"})
    ]
    assert titles == [
        "Loss",
        "Accuracy within the batch",
        "dev: hit@1",
        "dev: hit@10",
        "Temperature",
        "Learning rate",
        "Norm of the gradient",
        "Bias",
    ]


def test_the_metric_that_chose_the_model_is_among_the_plots() -> None:
    lines = [{"step": s, "evaluation": {"dev/a_to_b/mrr": 0.1 * s, "dev/a_to_b/hit@1": 0.1}} for s in (1, 2)]
    assert [
        plot.title for plot in learning_curves(lines, {"dev": RANKING}, {"accuracy": "Accuracy within the batch"})
    ] == ["dev: hit@1"]
    plots = learning_curves(lines, {"dev": RANKING}, {}, best="dev/a_to_b/mrr")
    assert {plot.title: plot.alt for plot in plots}["dev: mrr"] == "dev: mrr: a → b from 0.1 at step 1 to 0.2 at step 2"


def test_numbers_that_are_not_finite_are_left_out() -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}]
    assert [
        plot.alt for plot in learning_curves(lines, {"dev": RANKING}, {"accuracy": "Accuracy within the batch"})
    ] == ["Loss: 2 at step 1"]


def test_nothing_logged_gives_no_plots() -> None:
    assert learning_curves([], {}, {}) == []


def test_the_evaluation_before_training_is_the_first_point_of_its_curve(steps):
    start = {"step": 0, "start": {"dev/image_to_text/hit@1": 0.005}}
    plots = {plot.title: plot.alt for plot in learning_curves([start, *steps()], {"dev": RANKING}, {})}
    assert "from 0.005 at step 0 to" in plots["dev: hit@1"]

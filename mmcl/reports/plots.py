"""Learning curves as inline SVG that takes the page's colours and typeface."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from mmcl.evaluation.metrics.display import Display
from mmcl.reports.results import split_key, title_of

POINTS = 400  # a longer curve is shown as the means of so many stretches
MARKED = 25  # up to so many points, each gets a dot
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

# matplotlib draws in these stand-ins; in the page they become its CSS variables, which follow light and dark mode.
_INK, _RULE = "#010101", "#020202"
_SERIES = ("#030303", "#040404", "#050505", "#060606")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_VARIABLES = {_INK: "var(--muted)", _RULE: "var(--rule)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES, start=1)
}
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "mmcl", "text.parse_math": False, "font.size": 8.5}

_TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient",
}
_NOT_CURVES = {"step", "epoch", "pairs_per_second", "evaluation", "start"}


@dataclass(frozen=True)
class Curve:
    """A series of values over optimizer steps."""

    steps: np.ndarray
    values: np.ndarray
    label: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure of curves.

    Attributes:
        title: plain text.
        svg: an ``<svg>`` element.
        alt: what the figure shows, in words.
    """

    title: str
    svg: Markup
    alt: str


def learning_curves(
    lines: Sequence[Mapping[str, Any]],
    displays: Mapping[str, Display],
    fractions: Mapping[str, str],
    *,
    best: str | None = None,
    step: int | None = None,
) -> list[Plot]:
    """Plots of what a run logged: the loss and the method's fractions, evaluations, then every other number.

    Args:
        lines: of ``metrics.jsonl``; the evaluation before training is a curve's first point.
        displays: of the sources of the evaluation, by name.
        fractions: name to title of those of the method's metrics that are fractions in [0, 1].
        best: evaluation metric that chose the model, such as ``dev/image_to_text/hit@1``; always among the plots.
        step: the step that the model was taken from, to be marked in the evaluations.

    Returns:
        One plot a quantity; none where nothing was logged.
    """
    logged = _collect(line for line in lines if "evaluation" not in line)
    evaluations = [(line["step"], line[key]) for line in lines for key in ("start", "evaluation") if key in line]
    judged = _collect({"step": step, **values} for step, values in evaluations)
    titles = _TITLES | dict(fractions)
    first = [name for name in ("loss", *fractions) if name in logged]
    rest = [name for name in logged if name not in (*first, *_NOT_CURVES)]
    plots: list[tuple[str, list[Curve], bool, int | None]]
    plots = [(titles[name], [logged[name]], name in fractions, None) for name in first]
    plots += [
        (f"{source}: {metric}", curves, _display(source, displays).is_fraction(metric), step)
        for source, metric, curves in _evaluations(judged, displays, best)
    ]
    plots += [(titles.get(name, _capitalized(name)), [logged[name]], False, None) for name in rest]
    return [
        Plot(title, draw(curves, prefix=f"plot{number}", fractions=fractions, mark=mark), _in_words(title, curves))
        for number, (title, curves, fractions, mark) in enumerate(plots)
    ]


def draw(curves: Sequence[Curve], *, prefix: str, fractions: bool = False, mark: int | None = None) -> Markup:
    """Curves in one small panel.

    Args:
        curves: at least one, with at least one point each.
        prefix: makes the element's ids unique in a page.
        fractions: the values are fractions in [0, 1], shown in percent.
        mark: a step to mark with a vertical line.
    """
    # Space is made for the numbers beside the axes: those of a single value of 12,345.678 are long.
    figure = Figure(figsize=(3.9, 2.2), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    with matplotlib.rc_context(_STYLE):
        axes = figure.add_subplot()
        for number, curve in enumerate(curves):
            steps, values = _thin(curve)
            marker = "o" if len(steps) <= MARKED else ""
            color, dash = _SERIES[number % len(_SERIES)], _DASHES[number % len(_DASHES)]
            axes.plot(steps, values, color=color, linestyle=dash, linewidth=1.3, marker=marker, markersize=2.6)
            axes.lines[-1].set_label(
                textwrap.shorten(curve.label, 32, placeholder="…") if curve.label else f"_{number}"
            )
        if mark is not None:
            axes.axvline(mark, color=_INK, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_RULE)
        axes.tick_params(colors=_INK, length=0, pad=4)
        axes.grid(axis="y", color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0, right=max(1.0, axes.get_xlim()[1]))
        axes.set_xlabel("step", color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if fractions:
            axes.set_ylim(bottom=0.0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        else:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        if any(curve.label for curve in curves):
            axes.legend(frameon=False, labelcolor=_INK, handlelength=2.2, borderpad=0.1, loc="best")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), prefix)


def _for_page(svg: bytes, prefix: str) -> Markup:
    """matplotlib's document as an element of the page: its size, colours and typeface are the page's."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true", "focusable": "false"}
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                value = f"{prefix}-{value}"
            elif name == f"{{{_XLINK}}}href":
                value = value.replace("#", f"#{prefix}-")
            value = value.replace("url(#", f"url(#{prefix}-")
            for stand_in, variable in _VARIABLES.items():
                value = value.replace(stand_in, variable)
            element.set(name, value)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # escaped by ElementTree


def _collect(lines: Any) -> dict[str, Curve]:
    """Every finite number of the lines, as a curve by its name."""
    table: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                table.setdefault(name, []).append((line["step"], value))
    return {name: Curve(*np.array(points, dtype=np.float64).T) for name, points in table.items()}


def _display(source: str, displays: Mapping[str, Display]) -> Display:
    return displays.get(source, Display())


def _evaluations(
    judged: Mapping[str, Curve], displays: Mapping[str, Display], best: str | None
) -> list[tuple[str, str, list[Curve]]]:
    """Source, metric and curves of what a report shows of each source, and of the metric that chose the model."""
    ways: dict[tuple[str, str], dict[str, Curve]] = {}
    for key, curve in judged.items():
        source, way, metric = split_key(key)
        if source:
            ways.setdefault((source, metric), {})[way] = curve
    groups = {
        group: [Curve(curve.steps, curve.values, title_of(way, len(curves))) for way, curve in curves.items()]
        for group, curves in ways.items()
    }
    chosen = split_key(best or "")
    shown = []
    for source in dict.fromkeys(source for source, _ in groups):
        metrics = [metric for name, metric in groups if name == source]
        wanted = {*_display(source, displays).over_steps(metrics), *([chosen[2]] if source == chosen[0] else [])}
        shown += [(source, metric, groups[source, metric]) for metric in metrics if metric in wanted]
    return shown


def _thin(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    if len(curve.steps) <= POINTS:
        return curve.steps, curve.values
    stretches = np.array_split(np.arange(len(curve.steps)), POINTS)
    steps, values = (np.array([series[rows].mean() for rows in stretches]) for series in (curve.steps, curve.values))
    return steps, values


def _capitalized(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")


def _in_words(title: str, curves: Sequence[Curve]) -> str:
    parts = []
    for curve in curves:
        name = f"{curve.label} " if curve.label else ""
        first, last = (f"{value:.4g}" for value in (curve.values[0], curve.values[-1]))
        if len(curve.values) == 1:
            parts.append(f"{name}{first} at step {curve.steps[0]:,.0f}")
        else:
            parts.append(f"{name}from {first} at step {curve.steps[0]:,.0f} to {last} at step {curve.steps[-1]:,.0f}")
    return f"{title}: " + "; ".join(parts)

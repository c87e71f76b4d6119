"""A map: vectors as points of a plane, coloured by what is known of them."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mmcl.reports.page import page_environment
from mmcl.retrieval.inputs import as_shards, prepared
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path, atomic_file

log = logging.getLogger("mmcl")
MOST_POINTS = 20_000
"""More rows are drawn from at random."""
MOST_COLOURS = 10
"""More values of a column, but for the most frequent, share a grey."""
_OTHER, _NOTHING = "#b8bbc0", "#dcdee1"
_SIDE = 1000  # of the drawing, in its own units


@dataclass(frozen=True)
class Point:
    """A row on the map, in [0, 1] each way, with its colour and what is known of it."""

    x: float
    y: float
    colour: str
    title: str


def check_map(path: Path, count: int) -> None:
    """Raise ``MmclError`` unless ``path`` is the name of a PNG or HTML file, and so many vectors make a map."""
    if path.suffix.lower() not in (".png", ".html"):
        raise MmclError(f"{path}: a map is a picture or a page; name a .png or .html file")
    if count < 3:
        raise MmclError(f"{path}: {count} vectors make no map; give at least 3")


def write_map(
    vectors: Any,
    path: str | Path,
    values: Sequence[Any] | np.ndarray | None = None,
    *,
    title: str = "",
    method: str | None = None,
    most: int = MOST_POINTS,
    seed: int = 0,
) -> Path:
    """Draw vectors as points of a plane, near each other where the vectors are similar.

    Args:
        vectors: (N, D) array or opened vectors on disk.
        path: a ``.png`` or ``.html`` file. The page shows id, label and value of the point under the pointer, opens
            offline and runs no script.
        values: (N,) what colours the points: numbers, by a scale; or names, a colour each for the most frequent ten.
            Whole numbers below 0 are none.
        title: what the values are.
        method: ``umap`` (McInnes et al. 2018, arXiv:1802.03426), which the extra ``mmcl[map]`` installs; or ``pca``.
            The former where it is installed, if absent.
        most: points; of more rows so many are drawn at random.
        seed: of what is drawn at random.

    Returns:
        The path.

    Raises:
        MmclError: another kind of file, fewer than three vectors, values that do not fit, or a method that is not
            installed.
    """
    path = as_path(path)
    shards = as_shards(vectors)
    check_map(path, len(shards))
    if values is not None and len(values) != len(shards):
        raise MmclError(f"{len(values):,} values for {len(shards):,} vectors; give one for each")
    rows = np.arange(len(shards))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))
        log.info("map: %s of %s rows, drawn at random", f"{most:,}", f"{len(shards):,}")
    method = method or ("umap" if importlib.util.find_spec("umap") else "pca")
    unit = prepared(shards.take(rows), "cosine", lambda row: f"vector {rows[row]}")
    plane = two_dimensions(unit, method, seed)
    chosen = [None] * len(rows) if values is None else [_plain(values[row]) for row in rows.tolist()]
    colours, legend = colours_of(chosen)
    heading = f"{len(rows):,} of {len(shards):,} rows by {method.upper()}" + (f", coloured by {title}" if title else "")
    with atomic_file(path) as beside:
        if path.suffix.lower() == ".png":
            _draw(beside, plane, colours, legend, heading)
        else:
            table = shards.table().take(rows).to_pylist()
            points = [
                Point(x, y, colour, _title(row, title, value))
                for (x, y), colour, row, value in zip(plane.tolist(), colours, table, chosen, strict=True)
            ]
            page = page_environment().get_template("map.html.j2")
            beside.write_text(page.render(title=heading, points=points, legend=legend, side=_SIDE), encoding="utf-8")
    return path


def two_dimensions(vectors: np.ndarray, method: str, seed: int = 0) -> np.ndarray:
    """(N, 2) places in [0, 1] of (N, D) vectors.

    Raises:
        MmclError: the method is unknown or not installed.
    """
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise MmclError("UMAP is not installed; pip install 'mmcl[map]', or take the method pca") from None
        # In an order of its own, for the same seed: one thread.
        neighbours = min(15, len(vectors) - 1)
        reduced = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)
    elif method == "pca":
        centred = vectors - vectors.mean(0)
        reduced = centred @ np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    else:
        raise MmclError(f"map: the method is '{method}'; take umap or pca")
    low, high = reduced.min(0), reduced.max(0)
    span = np.where(high > low, high - low, 1.0)
    return np.asarray((reduced - low) / span, np.float64)


def colours_of(values: Sequence[Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """A colour for each value, and the legend: names with their colours. None has a pale one."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, float) for value in known):
        low, high = min(known), max(known)
        scale = matplotlib.colormaps["viridis"]

        def shade(value: float) -> str:
            return matplotlib.colors.to_hex(scale((value - low) / (high - low) if high > low else 0.5))

        legend = [(f"{value:.4g}", shade(value)) for value in dict.fromkeys((low, (low + high) / 2, high))]
        return [_NOTHING if value is None else shade(value) for value in values], legend
    counted = Counter(map(str, known))
    frequent = [name for name, _ in counted.most_common(MOST_COLOURS)]
    palette = [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps["tab10"].colors]
    of_names = dict(zip(frequent, palette, strict=False))
    legend = list(of_names.items()) + ([("other", _OTHER)] if len(counted) > len(frequent) else [])
    return [_NOTHING if value is None else of_names.get(str(value), _OTHER) for value in values], legend


def _draw(path: Path, plane: np.ndarray, colours: list[str], legend: list[tuple[str, str]], heading: str) -> None:
    figure = Figure(figsize=(8, 7), dpi=150, layout=ConstrainedLayoutEngine())
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        axes = figure.add_subplot()
        size = float(np.clip(20_000 / len(plane), 2, 40))
        axes.scatter(plane[:, 0], plane[:, 1], c=colours, s=size, linewidths=0, alpha=0.8)
        axes.set_title(heading, loc="left")
        axes.set_axis_off()
        for name, colour in legend:
            axes.scatter([], [], c=colour, s=30, label=name if len(name) <= 40 else f"{name[:39]}…")
        if legend:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, format="png")


def _plain(value: Any) -> Any:
    """A value as Python has it; None for what is none."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value != value or (isinstance(value, int) and value < 0):
        return None
    return value


def _title(row: dict[str, Any], name: str, value: Any) -> str:
    parts = [str(row["id"]), str(row.get("label") or "")]
    return " · ".join([part for part in parts if part] + ([f"{name}: {value}"] if name and value is not None else []))

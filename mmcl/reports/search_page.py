"""What a search found, as a page with thumbnails: one HTML file that opens offline and runs no script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from mmcl.data.images import image_suffixes
from mmcl.data.rows import Rows
from mmcl.evaluation.shown import Hit, Search
from mmcl.reports.page import page_environment
from mmcl.retrieval.search.queries import image_of as image_of_query
from mmcl.retrieval.search.queries import shown
from mmcl.retrieval.search.searcher import Result
from mmcl.runtime.files import atomic_file, existing_file

ImageOf: TypeAlias = Callable[[Any], bytes | Path | None]
"""From an id to its image, encoded or a file."""


def write_search_page(
    path: Path,
    queries: Sequence[Any],
    found: Sequence[Sequence[Result]],
    *,
    title: str,
    image_of: ImageOf | None = None,
) -> Path:
    """Write the results of queries to an HTML file.

    Args:
        path: the file; replaced if it exists.
        queries: Q, as for :meth:`mmcl.Searcher.search`.
        found: Q lists of results.
        title: plain text, as everything here: it is escaped.
        image_of: the image of a result by its id; by default the file that its label or one of its columns names, if
            there is such an image.

    Returns:
        ``path``.
    """
    searches = [
        Search(shown(query), [_hit(result, image_of) for result in results], image_of_query(query))
        for query, results in zip(queries, found, strict=True)
    ]
    count = sum(len(search.hits) for search in searches)
    subtitle = f"{len(searches):,} {'query' if len(searches) == 1 else 'queries'}, {count:,} results"
    page = page_environment().get_template("search.html.j2").render(title=title, subtitle=subtitle, searches=searches)
    with atomic_file(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


def images_of_rows(rows: Rows, column: str = "image") -> ImageOf:
    """From the id of a row to its image, which is read when it is asked for; None of an id that is no row's.

    Raises:
        MmclError: there is no such column.
    """
    rows.require([column])
    place = {name: row for row, name in enumerate(rows.ids())}
    return lambda name: rows.images(column, [place[str(name)]])[0] if str(name) in place else None


def _hit(result: Result, image_of: ImageOf | None) -> Hit:
    image = _named_image(result) if image_of is None else image_of(result.id)
    named = [
        str(result.id),
        *(f"{name} {_shown(value)}" for name, value in result.columns.items() if value is not None),
    ]
    details = named if result.label else named[1:]
    return Hit(result.label or str(result.id), result.score, image, details=" · ".join(details))


def _named_image(result: Result) -> Path | None:
    """The image file that a result names."""
    names = (value for value in (result.label, *result.columns.values()) if isinstance(value, str))
    files = (existing_file(name) for name in names if Path(name).suffix.lower() in image_suffixes())
    return next((file for file in files if file is not None), None)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

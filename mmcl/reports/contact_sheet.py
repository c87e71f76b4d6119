"""A contact sheet: what a method sees of the first rows of a config, drawn as one picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmcl.config.schema import Config
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file
from mmcl.training.first_views import first_views

_SIDE, _TEXT_WIDTH = 160, 320  # of a cell
_GAP, _MARGIN, _LINE = 12, 24, 22
_INK, _FAINT, _EDGE, _PAPER, _TOKEN = "#1c1e21", "#7a7f87", "#d9dce1", "#ffffff", "#e8eef7"


def write_contact_sheet(config: Config, path: Path, rows: int = 8, show_progress: bool | None = None) -> Path:
    """Draw the first ``rows`` of the first epoch and their views into a PNG file; returns its path.

    Raises:
        MmclError: ``path`` is no PNG file, or cannot be written; or as :func:`mmcl.training.train` before its first
            step.
    """
    if path.suffix.lower() != ".png":
        raise MmclError(f"--out {path}: the picture is a PNG file; give it a name that ends with .png")
    views = first_views(config, rows, show_progress)
    augmented = "" if any(map(config.augments, ("image", "text"))) else ", nothing is changed at random"
    sheet = contact_sheet(f"{config.name}: {config.method.name} on {views.source}{augmented}", views.columns)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as beside:
            sheet.save(beside, "PNG")
    except OSError as error:
        raise MmclError(f"--out {path}: cannot be written ({error.strerror or error})") from None
    return path


def contact_sheet(heading: str, columns: Mapping[str, Sequence[np.ndarray | list[str]]]) -> Image.Image:
    """Draw columns beside each other, each with its title.

    Args:
        heading: of the sheet.
        columns: title to an item of every row: an image, uint8 (H, W, 3), scaled to a cell; or the tokens of a text.
    """
    rows = list(zip(*columns.values(), strict=True))
    widths = [_TEXT_WIDTH if isinstance(items[0], list) else _SIDE for items in columns.values()]
    lefts = np.cumsum([_MARGIN, *(width + _GAP for width in widths)]).tolist()
    heights = [max(_height(item) for item in row) for row in rows]
    tops = np.cumsum([_MARGIN + 62, *(height + _GAP for height in heights)]).tolist()
    width = max(lefts[-1] - _GAP, _MARGIN + round(_font(17).getlength(heading))) + _MARGIN
    sheet = Image.new("RGB", (width, tops[-1] - _GAP + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 6), heading, _INK, _font(17))
    for title, left in zip(columns, lefts, strict=False):
        draw.text((left, tops[0] - 28), title, _FAINT, _font(13))
    for row, top in zip(rows, tops, strict=False):
        for item, left in zip(row, lefts, strict=False):
            if isinstance(item, list):
                _draw_tokens(draw, item, left, top)
            else:
                _draw_image(sheet, item, left, top)
    return sheet


def _height(item: np.ndarray | list[str]) -> int:
    if isinstance(item, list):
        return max(_SIDE, _LINE * (1 + max((line for _, line, _ in _places(item)), default=0)))
    return _SIDE


def _draw_image(sheet: Image.Image, pixels: np.ndarray, left: int, top: int) -> None:
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels)
    # Pixels much enlarged are shown as they are.
    image = image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    x, y = left + (_SIDE - size[0]) // 2, top + (_SIDE - size[1]) // 2
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=_EDGE)  # of white ones as well
    sheet.paste(image, (x, y))


def _draw_tokens(draw: ImageDraw.ImageDraw, tokens: list[str], left: int, top: int) -> None:
    for token, line, place in _places(tokens):
        x, y = left + place, top + line * _LINE
        draw.rounded_rectangle((x, y, x + _width(token), y + _LINE - 4), 4, _TOKEN)
        draw.text((x + 4, y + 1), token, _INK, _font(13))


def _places(tokens: list[str]) -> Iterator[tuple[str, int, int]]:
    """Each token with its line and where it begins there."""
    line = place = 0
    for token in tokens:
        token = token.strip() or "␣"
        if place and place + _width(token) > _TEXT_WIDTH:
            line, place = line + 1, 0
        yield token, line, place
        place += _width(token) + 4


def _width(token: str) -> int:
    return min(_TEXT_WIDTH, round(_font(13).getlength(token)) + 8)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own, which has the letters of more languages than Pillow's."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)

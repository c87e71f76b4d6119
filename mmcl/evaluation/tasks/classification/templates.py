"""Sets of sentences to put a class name into; a classifier averages over those of a set (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import existing_file
from mmcl.runtime.printable import shortened

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "photo": ("a photo of a {}.",),
    "images": (
        "a picture of a {}.",
        "a drawing of a {}.",
        "an icon of a {}.",
        "a close view of a {}.",
        "an image showing the {}.",
        "{}",
    ),
}
"""Our own sets by name. ``resolve`` knows open_clip's besides: ``openai`` (80) and ``simple`` (7)."""

_OF_OPEN_CLIP = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}


def resolve(templates: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """The templates that are meant, each with a place for the name: ``{}`` or ``{name}``.

    Args:
        templates: one or several of: a sentence with a place for the name; the name of a set, which is one of
            ``TEMPLATES``, ``openai`` (the 80 that the CLIP paper averages over on ImageNet) or ``simple`` (OpenAI's
            subset of 7); a text file with a template a line.

    Raises:
        MmclError: none is given, or one is nothing of these.
    """
    given = [templates] if isinstance(templates, str | Path) else list(templates)
    if not given:
        raise MmclError("templates: give at least one, such as 'a photo of a {}.'")
    return tuple(template for one in given for template in _meant(one))


def fill(template: str, name: str) -> str:
    """The sentence for ``name``. Plain replacement, so that other braces may stand in either."""
    return name.join(template.replace("{name}", "{}").split("{}"))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file without the white space around them; blank ones at the end are none."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise MmclError(f"{path}: not a UTF-8 text file ({error}); save it as UTF-8") from error


def _meant(given: str | Path) -> Sequence[str]:
    if isinstance(given, str):
        if given in TEMPLATES:
            return TEMPLATES[given]
        if given in _OF_OPEN_CLIP:
            from open_clip import zero_shot_metadata  # here, because importing open_clip takes seconds

            return [template("{}") for template in getattr(zero_shot_metadata, _OF_OPEN_CLIP[given])]
        if _has_place(given):
            return [given]
    if (path := existing_file(given)) is not None:
        return _of_file(path)
    known = nearest(str(given), [*TEMPLATES, *_OF_OPEN_CLIP])
    raise MmclError(
        f"template '{shortened(str(given))}': it has no place {{}} for the class name, and is neither a file "
        f"nor a set of templates ({known})"
    )


def _of_file(path: Path) -> list[str]:
    lines = [line for line in read_lines(path) if line]
    for number, line in enumerate(lines, 1):
        if not _has_place(line):
            raise MmclError(
                f"{path}: template {number}, '{line}', has no place for the class name: write {{}} or {{name}} in it"
            )
    if not lines:
        raise MmclError(f"{path}: no templates in it; write one a line, such as 'a photo of a {{}}.'")
    return lines


def _has_place(template: str) -> bool:
    return "{}" in template or "{name}" in template

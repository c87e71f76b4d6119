"""Sets of sentences to put a class name into; a classifier averages over those of a set (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.runtime.errors import MmclError, nearest

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "simple": ("a photo of a {}.",),
    "pictures": (
        "a picture of a {}.",
        "a drawing of a {}.",
        "an icon of a {}.",
        "a close view of a {}.",
        "an image showing the {}.",
        "{}",
    ),
}


def resolve(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a named set, or those given, each with a place for the name: ``{}`` or ``{name}``."""
    if isinstance(templates, str):
        if templates not in TEMPLATES and not _has_place(templates):
            raise MmclError(f"unknown template set '{templates}': {nearest(templates, TEMPLATES)}")
        templates = TEMPLATES.get(templates, (templates,))
    if not templates:
        raise MmclError("templates: give at least one, such as 'a photo of a {}.'")
    for template in templates:
        if not _has_place(template):
            raise MmclError(f"the template '{template}' has no place for the class name: write {{}} or {{name}} in it")
    return tuple(templates)


def fill(template: str, name: str) -> str:
    """The sentence for ``name``. Plain replacement, so that other braces may stand in either."""
    return name.join(template.replace("{name}", "{}").split("{}"))


def _has_place(template: str) -> bool:
    return "{}" in template or "{name}" in template

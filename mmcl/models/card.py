"""The model card: a README.md that says what a model is, what it learned from and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmcl.models.encoder import Encoder


def model_card(encoder: Encoder) -> str:
    """Markdown with the metadata block that model hubs read."""
    kinds = " and ".join(f"{modality}s" for modality in sorted(encoder.modalities))
    task = "sentence-similarity" if encoder.modalities == {"text"} else "zero-shot-image-classification"
    lines = [
        "---",
        "library_name: mmcl",
        f"pipeline_tag: {task}",
        "tags: [mmcl, contrastive, feature-extraction]",
        "---",
        "",
        f"# {encoder.name}",
        "",
        f"Embeds {kinds} into {encoder.dim} dimensions; compare the vectors by their cosine.",
        "",
        "```python",
        "import mmcl",
        "",
        'encoder = mmcl.load("path/to/this/folder")',
        f"vectors = encoder.encode({_example(encoder)})",
        "```",
    ]
    for title, values in encoder.card.items():
        lines += ["", f"## {title.capitalize()}", "", *_table(values)]
    return "\n".join(lines) + "\n"


def _example(encoder: Encoder) -> str:
    if "text" in encoder.modalities:
        return '["two dogs on a beach", "a red bicycle"]'
    return '[pathlib.Path("dog.jpg")]'


def _table(values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [str(values)]
    return ["| | |", "|---|---|", *(f"| {key} | {_show(value)} |" for key, value in values.items())]


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

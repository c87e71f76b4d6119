"""The model card: a README.md that says what a model is, what it learned from and how well it does."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from mmcl.formats.transformers.nets import UNLIMITED
from mmcl.models.text.tower import TextTower
from mmcl.runtime.printable import printable

if TYPE_CHECKING:
    from mmcl.encoding.encoder import Encoder

TRAINING_HEAD = "training_head.safetensors"


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
        f"# {_plain(encoder.name)}",
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
    if "text" in encoder.modalities:
        lines += ["", "## Texts", "", *_table(_texts(encoder), str)]
        if encoder.training_head is not None:
            lines += [
                "",
                f"`{TRAINING_HEAD}` stood before the loss in training; encoding does without it.",
            ]
    for title, values in encoder.card.items():
        lines += ["", f"## {_plain(title.capitalize())}", "", *_table(values)]
    return "\n".join(lines) + "\n"


def _example(encoder: Encoder) -> str:
    if "text" in encoder.modalities:
        return '["two dogs on a beach", "a red bicycle"]'
    return '[pathlib.Path("dog.jpg")]'


def _texts(encoder: Encoder) -> dict[str, Any]:
    """How texts become vectors, as far as who uses them has to know."""
    tower = cast(TextTower, encoder.embedder("text").tower)
    limited = tower.max_tokens < UNLIMITED
    facts = {
        "tokens": f"longer texts are cut after {tower.max_tokens}" if limited else "texts of any length are read whole",
        "pooling": _plain(tower.pooling),
    }
    if tower.lowercase:
        facts["case"] = "folded"
    for name, words in sorted(tower.prompts.items()):
        default = ", the default" if name == tower.default_prompt else ""
        facts[f"prompt {_code(name)}{default}"] = _code(json.dumps(words, ensure_ascii=False)) if words else "none"
    if tower.prompts and not tower.include_prompt:
        facts["prompts"] = "read, but left out of the pooling"
    sizes = encoder.card.get("training", {}).get("matryoshka")
    trained = f", as it was trained to: {_show(sizes)}" if sizes else ""
    facts["fewer dimensions"] = f"`encode(truncate_dim=…)` keeps the first{trained}"
    return facts


def _table(values: Any, show: Callable[[Any], str] | None = None) -> list[str]:
    """Two columns; ``show`` makes Markdown of keys and values, which are plain where it is absent."""
    show = show or _show
    if not isinstance(values, Mapping):
        return [show(values)]
    return ["| | |", "|---|---|", *(f"| {show(key)} | {show(value)} |" for key, value in values.items())]


def _show(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_show, value))
    return f"{value:.4g}" if isinstance(value, float) else _plain(str(value))


def _plain(text: str) -> str:
    """Markdown that shows ``text``, such as a run's or a file's name, as it is: no HTML, link or cell begins in it."""
    one_line = " ".join(printable(text).split())
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(one_line, quote=False))


def _code(text: str) -> str:
    """``text`` as code, where nothing in it would end the code or the cell."""
    if set(text) & set("`<\n") or printable(text) != text:
        return _plain(text)
    return "`" + text.replace("|", "\\|") + "`"

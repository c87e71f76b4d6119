"""The model card: a README.md that says what a model is, what it learned from and how well it does."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmcl.data.processors.table import TableProcessor
from mmcl.formats.heads import HEADS
from mmcl.models.text.limits import UNLIMITED
from mmcl.models.towers import Towers
from mmcl.runtime.printable import printable


def model_card(towers: Towers) -> str:
    """Markdown with the metadata block that model hubs read."""
    words = {"table": "rows of tables"}
    kinds = " and ".join(words.get(modality, f"{modality}s") for modality in sorted(towers.modalities))
    alone = {"text": "sentence-similarity", "image": "image-feature-extraction"}
    task = "zero-shot-image-classification" if towers.modalities == {"image", "text"} else "feature-extraction"
    task = alone.get("".join(towers.modalities), task)
    lines = [
        "---",
        "library_name: mmcl",
        f"pipeline_tag: {task}",
        "tags: [mmcl, contrastive, feature-extraction]",
        "---",
        "",
        f"# {_plain(towers.name)}",
        "",
        f"Embeds {kinds} into {towers.dim} dimensions; compare the vectors by their cosine.",
        "",
        "```python",
        "import mmcl",
        "",
        'encoder = mmcl.load("path/to/this/folder")',
        f"vectors = encoder.encode({_example(towers)})",
        "```",
    ]
    for name in towers.of_modality("text"):
        title = "Texts" if name == "text" else f"Texts of the tower '{_plain(name)}'"
        lines += ["", f"## {title}", "", *_table(_texts(towers, name), str)]
    for name in towers.of_modality("table"):
        processor = towers.embedder(name).processor
        assert isinstance(processor, TableProcessor), "as its modality says"
        lines += ["", f"## Columns of the tower '{_plain(name)}'", "", ", ".join(map(_plain, processor.columns))]
    if towers.heads:
        stood = " and ".join(map(_plain, towers.heads))
        lines += ["", f"`{HEADS}`: what stood before the loss in training ({stood}); encoding does without."]
    for title, values in towers.card.items():
        lines += ["", f"## {_plain(title.capitalize())}", "", *_table(values)]
    return "\n".join(lines) + "\n"


def with_section(card: str, title: str, lines: Sequence[str]) -> str:
    """A card with such a section, in place of the one of that title if it has one, else at its end."""
    section = "\n".join([f"## {title}", "", *lines]) + "\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    if found is None:
        return f"{card.rstrip()}\n\n{section}" if card.strip() else section
    rest = card[found.end() :]
    return card[: found.start()] + section + (f"\n{rest}" if rest else "")


def _example(towers: Towers) -> str:
    if texts := towers.of_modality("text"):
        inputs = '["two dogs on a beach", "a red bicycle"]'
        return inputs if len(texts) == 1 else f'{inputs}, modality="{texts[0]}"'
    if tables := towers.of_modality("table"):
        return f'rows.to_pylist(), modality="{tables[0]}"'
    return '[pathlib.Path("dog.jpg")]'


def _texts(towers: Towers, name: str) -> dict[str, Any]:
    """How texts become vectors, as far as who uses them has to know."""
    embedder = towers.text(name)
    processor = embedder.processor
    limited = processor.max_tokens < UNLIMITED
    facts = {
        "tokens": f"longer texts are cut after {processor.max_tokens}"
        if limited
        else "texts of any length are read to their end",
        "pooling": _plain(embedder.tower.pooling),
    }
    if processor.lowercase:
        facts["case"] = "folded"
    for prompt, text in sorted(processor.prompts.items()):
        default = ", the default" if prompt == processor.default_prompt else ""
        facts[f"prompt {_code(prompt)}{default}"] = _code(json.dumps(text, ensure_ascii=False)) if text else "none"
    if processor.prompts and not processor.include_prompt:
        facts["prompts"] = "read, but left out of the pooling"
    sizes = towers.card.get("training", {}).get("matryoshka")
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

"""The model card: names and texts of others are shown, and nothing in them becomes HTML, a link or a cell."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from mmcl.formats.card import model_card

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "a | b\n| c | d |",
    "`code` *bold* &lt;b&gt;",
    "over\u202eride \x1b]0;x\x07",
]


def card_of(name="n", prompt=("q", "w"), values=None):
    """The card of an encoder of texts with these words in it."""
    processor = SimpleNamespace(
        max_tokens=8,
        lowercase=False,
        prompts={prompt[0]: prompt[1]},
        default_prompt=None,
        include_prompt=True,
    )
    encoder = SimpleNamespace(
        modalities={"text"},
        of_modality=lambda modality: ["text"] if modality == "text" else [],
        name=name,
        dim=4,
        heads={},
        card=values or {},
        text=lambda _: SimpleNamespace(processor=processor, tower=SimpleNamespace(pooling="mean")),
    )
    return model_card(encoder)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_others_is_markup(text):
    made = [
        card_of(name=text),
        card_of(prompt=(text, text)),
        card_of(values={"data": {"source": text, text: [text, 1.5]}, text: text}),
    ]
    plain = card_of(values={"data": {"source": "s", "t": ["u", 1.5]}, "v": "w"})
    for written in made:
        assert not re.search(r"<(?!=)", written)
        assert not re.search(r"(?<!\\)\]\(", re.sub("`[^`]*`", "", written))
        assert not set(written) & set("\x1b\x07\u202e")
    assert made[2].count("\n") == plain.count("\n")
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in made[2].splitlines()]
    assert cells == [len(re.findall(r"(?<!\\)\|", line)) for line in plain.splitlines()]


def test_plain_names_stay_as_they_are():
    written = card_of(name="my_run-1.5 (ä)", values={"data": {"source": "a/b_c.csv", "rows": 3}})
    assert "# my_run-1.5 (ä)\n" in written
    assert "| source | a/b_c.csv |" in written
    assert '| prompt `q` | `"w"` |' in written

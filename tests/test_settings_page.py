"""The page of settings in docs/, against the schema that pydantic makes of the same models."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from mmcl.config import Config

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def page():
    return runpy.run_path(str(DOCS / "settings_page.py"))["settings_page"]()


def _sections(schema):
    """Each class of settings in the schema: its name and its properties."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            yield schema["title"], schema["properties"]
        for part in schema.values():
            yield from _sections(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _sections(part)


def test_every_setting_has_its_sentence(page):
    words = " ".join(page.split())
    sections = dict(_sections(Config.model_json_schema()))
    assert {"Config", "ClipConfig", "SwavConfig", "StsSourceConfig", "TokenizerConfig"} <= sections.keys()
    for title, properties in sections.items():
        for name, about in properties.items():
            if "const" not in about:  # what chooses a section stands in its heading
                # Left out of the schema where it is the very sentence of the section.
                sentence = about.get("description", "" if "$ref" in about else None)
                assert sentence is not None, f"{title}.{name} has no sentence"
                assert f"`{name}` : " in words, f"{title}.{name}"
                assert " ".join(sentence.split()) in words, f"{title}.{name}"


@pytest.mark.parametrize(
    "entry",
    [
        "`seed`\n: integer ≥ 0, < 4,294,967,296, default `0`",
        "`betas`\n: list of 2: number ≥ 0, < 1, number ≥ 0, < 1, default `[0.9, 0.98]`",
        "`train`\n: section, required",
        "`optimizer`\n: `adamw` or `sgd` or `lars` or `muon`, default `adamw`",
        "`micro_batch`\n: integer ≥ 1 or section or `auto` or null, default `null`",
        "`ks`\n: list of integers ≥ 1, default `[1, 5, 10]`",
        "`sources`\n: mapping of names to sections, whose settings depend on its `task`, default `{}`",
        "`projector`\n: section, default `{dim: 256, hidden: [4096]}`",
    ],
)
def test_an_entry_has_the_type_the_limits_and_the_default(page, entry):
    assert f"{entry}\n" in page


def test_settings_of_a_class_stand_once(page):
    assert page.count("\n`checkpointing`\n") == 3  # of images, of texts, and of tables
    assert "#### `model.text.lora`\n\nThe settings of `model.image.lora`.\n" in page
    assert "The settings of `model.text`." in page

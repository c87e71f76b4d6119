from __future__ import annotations

import pytest

from mmcl.evaluation.tasks.classification.templates import TEMPLATES, fill, resolve
from mmcl.runtime.errors import MmclError


def test_a_name_is_put_in_every_place_and_other_braces_stay() -> None:
    assert fill("a {} and a {name}: {x}", "cat {}") == "a cat {} and a cat {}: {x}"


def test_sets_by_name_a_single_template_and_a_list() -> None:
    assert resolve("photo") == ("a photo of a {}.",)
    assert resolve("one {}") == ("one {}",)
    assert resolve(["{}", "{name}!"]) == ("{}", "{name}!")
    assert resolve(["photo", "{}!"]) == ("a photo of a {}.", "{}!")
    assert all(resolve(name) for name in TEMPLATES)


@pytest.mark.parametrize(
    ("name", "theirs", "count"),
    [("openai", "OPENAI_IMAGENET_TEMPLATES", 80), ("simple", "SIMPLE_IMAGENET_TEMPLATES", 7)],
)
def test_the_sets_of_open_clip_say_what_its_functions_say(name: str, theirs: str, count: int) -> None:
    from open_clip import zero_shot_metadata

    templates = resolve(name)
    assert len(templates) == count
    said = [template("great white shark") for template in getattr(zero_shot_metadata, theirs)]
    assert [fill(template, "great white shark") for template in templates] == said


def test_a_file_holds_one_a_line(tmp_path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("ein Bild: {}\n\n  {name}, gemalt \n\n", encoding="utf-8")
    assert resolve([str(path), "{}"]) == resolve(["ein Bild: {}", "{name}, gemalt", "{}"])
    assert resolve(path) == ("ein Bild: {}", "{name}, gemalt")
    path.write_text("a photo of a {}\na photo\n")
    with pytest.raises(MmclError, match="template 2, 'a photo', has no place for the class name"):
        resolve(str(path))
    path.write_text("\n")
    with pytest.raises(MmclError, match="no templates in it"):
        resolve(path)
    path.write_bytes("schön {}".encode("latin-1"))
    with pytest.raises(MmclError, match="not a UTF-8 text file"):
        resolve(path)


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("simpel", "did you mean 'simple'"),
        (["a photo"], "'a photo': it has no place {} for the class name"),
        ([], "give at least one"),
    ],
)
def test_bad_templates_are_answered_in_one_line(templates: object, message: str) -> None:
    with pytest.raises(MmclError, match=message):
        resolve(templates)

from __future__ import annotations

import pytest

from mmcl.evaluation.templates import TEMPLATES, fill, resolve
from mmcl.runtime.errors import MmclError


def test_a_name_is_put_in_every_place_and_other_braces_stay() -> None:
    assert fill("a {} and a {name}: {x}", "cat {}") == "a cat {} and a cat {}: {x}"


def test_sets_by_name_a_single_template_and_a_list() -> None:
    assert resolve("simple") == ("a photo of a {}.",)
    assert resolve("one {}") == ("one {}",)
    assert resolve(["{}", "{name}!"]) == ("{}", "{name}!")
    assert all(resolve(name) for name in TEMPLATES)


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("simpel", "did you mean 'simple'"),
        (["a photo"], "'a photo' has no place for the class name"),
        ([], "give at least one"),
    ],
)
def test_bad_templates_are_answered_in_one_line(templates: object, message: str) -> None:
    with pytest.raises(MmclError, match=message):
        resolve(templates)

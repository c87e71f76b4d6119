"""What every section of a config shares."""

from __future__ import annotations

import pytest
import yaml
from pydantic import Field

from mmcl.config.load import load_config, to_yaml
from mmcl.config.section import Section


class Inner(Section):
    width: int = 1
    depth: int = 2
    bias: bool = True


class Outer(Section):
    wide: Inner = Field(default_factory=lambda: Inner(width=10, bias=False))
    deep: Inner = Inner(depth=20)
    own: Inner = Field(default_factory=Inner)
    absent: Inner | None = None


@pytest.mark.parametrize(
    ("given", "wide", "deep"),
    [
        ({}, (10, 2, False), (1, 20, True)),
        ({"wide": {}, "deep": {"width": 3}}, (10, 2, False), (3, 20, True)),
        ({"wide": {"depth": 5}, "deep": {"depth": 6}}, (10, 5, False), (1, 6, True)),
        ({"wide": {"width": 1, "bias": True}}, (1, 2, True), (1, 20, True)),
        ({"wide": Inner(depth=5)}, (1, 5, True), (1, 20, True)),
    ],
)
def test_a_partial_section_keeps_the_other_defaults_of_its_field(given, wide, deep):
    outer = Outer.model_validate(given)
    assert (outer.wide.width, outer.wide.depth, outer.wide.bias) == wide
    assert (outer.deep.width, outer.deep.depth, outer.deep.bias) == deep
    assert Outer.model_validate(outer.model_dump()) == outer


def test_a_section_without_defaults_of_its_field_has_its_own():
    outer = Outer.model_validate({"own": {"width": 3}, "absent": {"depth": 4}})
    assert (outer.own, outer.absent) == (Inner(width=3), Inner(depth=4))
    assert outer.own.model_fields_set == {"width"}


def test_a_projector_of_another_width_keeps_the_dimension_of_its_method():
    given = {"data": {"train": {"source": "rows.csv"}}, "model": {}}
    config = load_config(given | {"method": {"name": "byol", "projector": {"hidden": [512]}}})
    assert (config.method.projector.hidden, config.method.projector.dim) == ([512], 256)
    assert load_config(yaml.safe_load(to_yaml(config))) == config
    former = given | {"method": {"name": "byol", "projector": {"hidden": [512], "dim": 128}}}
    assert load_config(former).method.projector.dim == 128

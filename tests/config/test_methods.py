"""A method of another package: its settings are checked, named in messages, dumped, and stand in the schema."""

from __future__ import annotations

import sys

import pytest
import yaml

from mmcl.config import Config, load_config
from mmcl.config.load import to_yaml
from mmcl.config.methods import METHOD, METHODS
from mmcl.runtime.errors import MmclError

MODULE = '''
from typing import Literal
from mmcl.config.methods import MethodConfig

class GreyConfig(MethodConfig):
    name: Literal["grey"] = "grey"
    shade: float = 0.5
    """How dark."""

class Grey:
    Config = GreyConfig

class Bare:
    pass

class Plain:
    Config = dict

class Silver(Grey):
    pass

class OpenConfig(MethodConfig):
    pass

class Open:
    Config = OpenConfig
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    info = tmp_path / "greys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greys\nVersion: 1.0\n")
    names = {"broken": "Gone"} | {name.lower(): name for name in ("Grey", "Bare", "Plain", "Silver", "Open")}
    points = "".join(f"{name} = greys_:{kind}\n" for name, kind in names.items())
    (info / "entry_points.txt").write_text(f"[mmcl.methods]\n{points}")
    (tmp_path / "greys_.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    METHODS.__dict__.pop("plugins", None)
    monkeypatch.setattr(METHOD, "_warned", set())
    yield
    METHODS.__dict__.pop("plugins", None)
    for name in names:
        METHODS._loaded.pop(name, None)
    sys.modules.pop("greys_", None)


def given(method):
    return {"data": {"train": {"source": "rows.csv"}}, "model": {}, "method": method}


def test_the_settings_of_a_plug_in_are_checked_and_in_the_schema(installed):
    config = load_config(given({"name": "grey", "shade": 0.25}))
    assert config.method.shade == 0.25
    assert yaml.safe_load(to_yaml(config))["method"] == {"name": "grey", "shade": 0.25}
    assert load_config(yaml.safe_load(to_yaml(config))) == config
    with pytest.raises(MmclError, match=r"unknown key 'method\.shde'; did you mean 'shade'\?"):
        load_config(given({"name": "grey", "shde": 1}))
    with pytest.raises(MmclError, match=r"'method\.shade' is 'dark': input should be a valid number"):
        load_config(given({"name": "grey", "shade": "dark"}))
    schema = Config.model_json_schema()
    known = {f"#/$defs/{name}": section for name, section in schema["$defs"].items()}
    members = [known.get(each.get("$ref"), each) for each in schema["properties"]["method"]["oneOf"]]
    members = {each["title"]: each for each in members}
    assert members["GreyConfig"]["properties"]["shade"]["description"] == "How dark."
    assert "temperature" in members["ClipConfig"]["properties"]


def test_a_plug_in_that_cannot_be_imported_is_named_where_it_is_asked_for_and_nowhere_else(installed, caplog):
    assert load_config(given("siglip")).method.name == "siglip"
    with pytest.raises(MmclError, match=r"method 'broken': greys_:Gone of greys 1\.0 cannot be imported"):
        load_config(given("broken"))
    Config.model_json_schema()
    Config.model_json_schema()
    assert caplog.text.count("method 'broken'") == 1
    with pytest.raises(MmclError, match=r"'method\.name' is 'gray'; did you mean 'grey'\?"):
        load_config(given("gray"))


def test_a_class_without_settings_of_its_name_is_named_rather_than_the_config(installed, caplog):
    for name in ("bare", "plain"):
        lacks = rf"^method '{name}': greys_\.{name.title()} has no settings; set its Config to a subclass of mmcl"
        with pytest.raises(MmclError, match=lacks):
            load_config(given(name))
    for name, config in {"silver": "GreyConfig", "open": "OpenConfig"}.items():
        other = rf"its Config, {config}, has another name; declare name: Literal\[\"{name}\"\] = \"{name}\" there$"
        with pytest.raises(MmclError, match=other):
            load_config(given({"name": name}))
    assert load_config(given("grey")).method.shade == 0.5
    Config.model_json_schema()
    assert caplog.text.count("method 'silver': greys_.Silver") == 1

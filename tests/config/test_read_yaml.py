"""YAML of an unknown hand: every mistake is one short line, found in bounded time."""

from __future__ import annotations

import itertools
import time

import pytest
import yaml

from mmcl.config import load_config, read_yaml
from mmcl.config.methods import METHODS
from mmcl.config.read_yaml import parse_yaml
from mmcl.runtime.errors import MmclError

REST = "\ndata: {train: {source: x}}\nmodel: {}\n"


def _powers(first, each):
    """Eight levels, each of nine aliases of the one before: 9^8 values in less than 500 bytes."""
    names = "abcdefghi"
    return first + "".join(each.format(name=n, nine=",".join([f"*{p}"] * 9)) for p, n in itertools.pairwise(names))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("? [a, b]\n: 1", "line 1: not valid YAML: a list or a section cannot be a key"),
        ("x: {? {a: b} : 1}", "cannot be a key"),
        ("a: " + "[" * 1_000, "nested deeper than 50 levels"),
        ("a: " + "{b: " * 1_000, "nested deeper than 50 levels"),
        (_powers("a: &a [x,x]\n", "{name}: &{name} [{nine}]\n"), "more than 10,000 values, counting what aliases"),
        (_powers("a: &a {{k: 1}}\n", "{name}: &{name} {{<<: [{nine}]}}\n"), "more than 10,000 values, counting"),
        ("a: &a [*a]", "an alias stands inside of what it names"),
        ("a: &a {b: {c: *a}}", "an alias stands inside of what it names"),
        ("seed: " + "9" * 6000, "characters) …"),
        ("seed: !!int x", "'x' cannot be read as int"),
        ("seed: !!bool x", "'x' cannot be read as bool"),
        ("seed: !!timestamp 2020-13-45", "the tag"),
        ("seed: !!python/object/apply:os.system [ls]", "the tag"),
        ("a: '" + "x" * 2_000_000 + "'", "longer than 1 MB"),
        ("a: \x00", "special characters are not allowed"),
        ("training: {lr: .inf}" + REST, "'training.lr' is inf: input should be a finite number"),
        ("training: {lr: .nan}" + REST, "'training.lr' is nan"),
        ("training: {lr: 1e400}" + REST, "'training.lr' is inf"),
        ("training: {epochs: 1e300}" + REST, "'training.epochs' is 1e+300"),
        ("training: {batch_size: 99999999999999999999999}" + REST, "training.batch_size': a number of at most"),
        ("model: {image: {name: x, args: {k: [1, 99999999999999999999999]}}}\ndata: {train: {source: x}}", "at most"),
        ("training: {lr: " + "x" * 100_000 + "}" + REST, "characters) …"),
        ("training: {lr: [" + "1," * 500 + "]}" + REST, "[1, 1, 1, 1, … (500 values)]"),
        ('? "' + "x" * 50_000 + '"\n: 1' + REST, "characters) …"),
        ("method: {name: " + "y" * 50_000 + "}" + REST, "; known: barlow_twins, byol, clip, "),
        (f"model: {{text: {{layers: {2**40}}}}}\ndata: {{train: {{source: x}}}}", "less than or equal to 4096"),
        (f"model: {{text: {{width: {2**40}}}}}\ndata: {{train: {{source: x}}}}", "less than or equal to 1048576"),
        (f"model: {{dim: {2**40}}}\ndata: {{train: {{source: x}}}}", "less than or equal to 1048576"),
        ("training: {epochs: 1:30}" + REST, "'training.epochs' is '1:30'"),
        ("model: {image: {name: x, dim: " + "[" * 40 + "]" * 40 + "}}\ndata: {train: {source: x}}", "model.image"),
    ],
)
def test_hostile_yaml_is_one_short_line_in_bounded_time(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert METHODS["clip"], "imported before the time is taken"
    started = time.monotonic()
    with pytest.raises(MmclError) as caught:
        load_config(path)
    message = str(caught.value).replace(str(path), "PATH")
    assert said in message
    assert len(message) < 700
    assert "\n" not in message
    assert time.monotonic() - started < 10  # seconds at most on a loaded machine, where it did not end


def test_what_looks_like_a_date_is_text_and_an_alias_is_what_it_names():
    text = "a: 2020-01-01\nb: 2020-13-45\nc: &c {x: 1}\nd: *c\ne: {<<: *c, y: 1e-3}\nf: 2020-01-01T00:00:00+02:00"
    values = parse_yaml(text)
    assert values["a"] == "2020-01-01"
    assert values["b"] == "2020-13-45"
    assert values["d"] == {"x": 1}
    assert values["e"] == {"x": 1, "y": 0.001}
    assert values["f"] == "2020-01-01T00:00:00+02:00"


@pytest.mark.parametrize("override", ["a=[" + "[" * 500, "training.lr=" + "x" * 9000, "x" * 9000, "a=2020-13-45"])
def test_overrides_are_read_within_the_same_limits(override):
    with pytest.raises(MmclError) as caught:
        load_config({"data": {"train": {"source": "x"}}, "model": {}}, [override])
    assert len(str(caught.value)) < 600


def test_values_are_counted_while_they_are_read(monkeypatch):
    monkeypatch.setattr(read_yaml, "MOST_NODES", 100)
    with pytest.raises(yaml.YAMLError, match="more than 100 values"):
        parse_yaml("a: [" + "1," * 101 + "]")

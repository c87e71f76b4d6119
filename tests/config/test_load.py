"""Configs: what is accepted, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmcl.config import Config, load_config
from mmcl.config.load import to_yaml
from mmcl.runtime.errors import MmclError

MINIMAL = {"data": {"train": {"source": "pairs.csv"}}, "model": {}}


def changed(**sections):
    return MINIMAL | sections


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (changed(model={"dmi": 3}), ["unknown key 'model.dmi'", "'dim'"]),
        (changed(method={"name": "siglip", "extra_texts": 3}), ["unknown key 'method.extra_texts'; known: bias, "]),
        (changed(method={"name": "siglip", "learn_bia": True}), ["'learn_bias'"]),
        (changed(trainning={}), ["unknown key 'trainning'", "'training'"]),
        (changed(model={"image": {"head": {"knd": "mlp"}}}), ["'model.image.head.knd'", "'kind'"]),
        (changed(evaluation={"sources": {"dev": {"source": "x", "splt": "a"}}}), ["sources.dev.splt", "'split'"]),
        (changed(model={"dim": "wide"}), ["'model.dim' is 'wide'", "valid integer"]),
        (changed(training={"schedule": "cosin"}), ["'training.schedule' is 'cosin'", "'cosine'"]),
        (changed(augmentation={"flip": 1.5}), ["'augmentation.flip' is 1.5", "less than or equal to 1"]),
        (changed(augmentation={"crop_scale": [0.9, 0.2]}), ["crop_scale", "ascending"]),
        (changed(augmentation={"crop_scale": 0.5}), ["augmentation.crop_scale", "is 0.5", "valid list"]),
        (changed(model={"text": {"width": 100, "heads": 3}}), ["model.text", "3 attention heads", "100"]),
        (changed(evaluation={"sources": {"dev": {"source": "x"}}, "best": "dev/hit@1"}), ["best", "dev/"]),
        (changed(training={"micro_batch": {"tokens": 0}}), ["'training.micro_batch.tokens' is 0: ", "equal to 1"]),
        (changed(training={"micro_batch": {"token": 5}}), ["unknown key 'training.micro_batch.token'", "'tokens'"]),
        (
            changed(method={"name": "clip", "queue": 5}),
            ["'method.queue' is 5, but takes settings", "size, momentum, start"],
        ),
        (changed(training={"micro_batch": {}}), ["'training.micro_batch.tokens' is missing"]),
        (changed(training={"timeout": 1e300}), ["'training.timeout' is 1e+300", "equal to 525600"]),
        (changed(training={"micro_batch": True}), ["in 'training.micro_batch': a number is asked for, not true"]),
        (changed(training={"lr": False}), ["in 'training.lr': a number is asked for, not false"]),
        (changed(training={"average": True}), ["in 'training.average': a number is asked for, not true"]),
        (changed(training={"micro_batch": 0}), ["'training.micro_batch' is 0: "]),
        ({"model": {}}, ["'data' is missing"]),
        ({"dta": MINIMAL["data"], "model": {}}, ["unknown key 'dta'", "did you mean 'data'?"]),
        (changed(data={"trian": {"source": "x"}}), ["unknown key 'data.trian'", "did you mean 'train'?"]),
    ],
)
def test_mistakes_are_named_with_file_key_and_cure(tmp_path, values, parts):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(MmclError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for part in parts:
        assert part in message


APART = {"train": {"source": "a.csv"}, "mix": [{"source": "b.csv"}], "batches": "one_source"}


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("data.mining", {"data": APART | {"mining": {}}}),
        ("method.queue", {"data": APART, "method": {"name": "simcse", "queue": {}}}),
        ("method.extra_texts", {"data": APART, "method": {"name": "clip", "extra_texts": 5}}),
    ],
)
def test_negatives_of_all_sources_are_refused_where_sources_are_kept_apart(setting, values):
    with pytest.raises(
        MmclError, match=rf"{setting} takes negatives from all sources, which data\.batches: one_source"
    ):
        load_config(changed(**values))
    load_config(changed(**values), ["data.batches=mixed"])
    load_config(changed(**values), ["data.mix=[]"])


@pytest.mark.parametrize(
    ("training", "more"),
    [
        ({"micro_batch": 0}, 0),
        ({"micro_batch": {"tokens": 0}}, 0),
        ({"micro_batch": 0, "lr": 0}, 1),
        ({"micro_batch": {"tokens": 0}, "lr": 0, "keep": 0}, 2),
        ({"lr": 0}, 0),
    ],
)
def test_more_mistakes_are_counted_each_once(training, more):
    with pytest.raises(MmclError) as caught:
        load_config(changed(training=training))
    assert str(caught.value).endswith(f" (and {more} more)") == (more > 0)
    assert ("more)" in str(caught.value)) == (more > 0)


@pytest.mark.parametrize(
    ("text", "part"),
    [("", "empty"), ("- a\n- b\n", "list"), ("data: [1\nmodel: x", "line 2: not valid YAML"), ("\x00", "valid YAML")],
)
def test_files_that_are_no_config_are_refused(tmp_path, text, part):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(MmclError, match=part):
        load_config(path)


def test_data_in_the_place_of_a_config_is_refused_in_one_line(tmp_path):
    for name, part in [
        ("pairs.parquet", r"pairs\.parquet: not a config but a table, which data\.train\.source of a config names"),
        ("pairs.tar", r"pairs\.tar: not UTF-8 text; a config is a YAML file, in which data\.train"),
    ]:
        (tmp_path / name).write_bytes(b"PAR1\x15\x04\x15\xd0\xff")
        with pytest.raises(MmclError, match=part):
            load_config(tmp_path / name)


def test_a_missing_file_is_named():
    with pytest.raises(MmclError, match=r"nowhere\.yaml: no such config file"):
        load_config("nowhere.yaml")


def test_overrides_are_yaml_values_under_dotted_keys():
    overrides = ["training.lr=1e-4", "model.image.frozen=true", "evaluation.ks=[1, 3]", "model.image.args.stem_width=8"]
    config = load_config(MINIMAL, overrides)
    assert config.training.lr == 1e-4
    assert config.model.image.frozen is True
    assert config.evaluation.ks == (1, 3)
    assert config.model.image.args == {"stem_width": 8}


def test_overrides_leave_the_callers_mapping_alone():
    values = {"data": {"train": {"source": "pairs.csv"}}, "model": {"dim": 8}}
    load_config(values, ["model.dim=16"])
    assert values["model"]["dim"] == 8


@pytest.mark.parametrize("override", ["training.lr", "=3", "training.lr.x=1", "training.lr=[1"])
def test_overrides_that_are_none_are_refused(override):
    with pytest.raises(MmclError, match="--set"):
        load_config(MINIMAL, ["training.lr=1", override])


def test_the_resolved_yaml_repeats_the_config(tmp_path):
    config = load_config(MINIMAL, ["model.image={}", "training.epochs=2.5"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_every_key_is_described_for_editors():
    def undescribed(node, where):
        for name, field in node.get("properties", {}).items():
            if "description" not in field and name != "name":
                yield f"{where}.{name}"

    schema = Config.model_json_schema()
    missing = [key for title, node in schema["$defs"].items() for key in undescribed(node, title)]
    assert missing == []


def test_the_ready_configs_are_valid():
    ready = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
    assert ready
    for path in ready:
        load_config(path)


def test_a_method_can_be_named_alone():
    rest = {"data": {"train": {"source": "rows.csv"}}, "model": {}}
    assert load_config({**rest, "method": "siglip"}).method.name == "siglip"
    with pytest.raises(MmclError, match="did you mean 'siglip'"):
        load_config({**rest, "method": "sigclip"})

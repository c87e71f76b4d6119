"""Trackers of experiments get what metrics.jsonl gets; a resumed run goes on in the same run of theirs."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmcl.config.load import load_config
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.check_config import check_config
from mmcl.training.run import Run


def test_tensorboard_has_every_number_of_the_metrics(tmp_path, words):
    run = train(words, out=tmp_path / "run", overrides=["training.trackers=[tensorboard]"], show_progress=False)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    expected = {}
    for line in run.lines():
        for key, value in line.items():
            numbers = value if isinstance(value, dict) else {f"train/{key}": value}
            expected |= {(name, line["step"]): n for name, n in numbers.items() if isinstance(n, int | float)}
    found = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert found == pytest.approx({key: value for key, value in expected.items() if key[0] != "train/step"}, rel=1e-6)


class Fake(SimpleNamespace):
    """wandb, as far as accelerate uses it."""

    def init(self, **settings):
        self.inits.append(settings)
        self.config = SimpleNamespace(update=lambda values, **_: self.configs.append(values))
        log = lambda values, step: self.lines.append((step, values))  # noqa: E731
        return SimpleNamespace(id=settings["id"] or "abc", log=log, finish=lambda: self.ends.append(True))


@pytest.fixture
def wandb(monkeypatch):
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    fake = Fake(inits=[], configs=[], lines=[], ends=[])
    module.init = fake.init
    module.__getattr__ = lambda name: getattr(fake, name)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return fake


def test_a_resumed_run_goes_on_in_its_own_run(tmp_path, words, wandb):
    changes = ["training.trackers=[wandb]", "training.epochs=1"]
    train(words, out=tmp_path / "run", overrides=changes, show_progress=False)
    assert wandb.configs[0]["training.batch_size"] == 6
    changes[1] = "training.epochs=2"
    train(words, out=tmp_path / "run", overrides=changes, resume=True, show_progress=False)
    assert [(each["project"], each["id"]) for each in wandb.inits] == [("words", None), ("words", "abc")]
    assert len(wandb.configs) == 1
    assert len(wandb.ends) == 2
    losses = [(line["step"], line["loss"]) for line in Run(tmp_path / "run").lines() if "loss" in line]
    assert [(step, values["train/loss"]) for step, values in wandb.lines if "train/loss" in values] == losses


def test_a_missing_library_is_named_with_its_extra_before_anything_is_read(tmp_path, words):
    words = words | {"data": {"train": {"source": "nowhere.csv"}}}
    said = r"^training.trackers: mlflow needs the package mlflow: pip install 'mmcl\[mlflow\]', or leave it out$"
    with pytest.raises(MmclError, match=said):
        train(words, out=tmp_path / "run", overrides=["training.trackers=[mlflow]"], show_progress=False)
    with pytest.raises(MmclError, match=said):
        check_config(load_config(words, ["training.trackers=[mlflow]"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("switch", "trackers"), [(True, ["tensorboard"]), (False, [])])
def test_the_config_of_an_older_run_is_read(words, switch, trackers):
    values = json.loads(load_config(words).model_dump_json())
    del values["training"]["trackers"]
    values["training"]["tensorboard"] = switch
    assert load_config(values).training.trackers == trackers

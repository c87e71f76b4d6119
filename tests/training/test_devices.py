"""What the towers of a run compute in: chosen once, and kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmcl import train
from mmcl.config.load import load_config
from mmcl.methods.parts.momentum import MomentumCopy
from mmcl.runtime.errors import MmclError
from mmcl.training.build import build_method
from mmcl.training.checkpoint import Progress, list_checkpoints, save_checkpoint
from mmcl.training.devices import choose_precision, describe_precision, outermost, set_precision
from mmcl.training.run import Run

CPU = torch.device("cpu")
MIXED = {"image": "bfloat16", "text": "float32"}


@pytest.fixture
def hardware(monkeypatch):
    """Have the CPU multiply bfloat16, by AMX, or not."""

    def hardware(native, amx=False):
        monkeypatch.setattr("mmcl.training.devices.multiplies_bfloat16", lambda device: native)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)

    return hardware


class Part(nn.Module):
    """Of an embedder, what is looked at: a tower of these layers."""

    def __init__(self, *layers):
        super().__init__()
        self.tower = nn.Sequential(*layers)


class Encoder:
    """Towers of one part each."""

    def __init__(self, **parts):
        self.names, self.embedder = sorted(parts), parts.get


TOWERS = Encoder(
    image=Part(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 3), nn.Linear(64, 16)),
    text=Part(nn.Embedding(9000, 64), nn.Linear(64, 192), nn.Linear(64, 256)),
)


def test_auto_is_bfloat16_where_it_is_native_but_for_narrow_transformers_on_amx(hardware):
    hardware(native=False)
    assert choose_precision("auto", TOWERS, CPU, []) == "float32"
    hardware(native=True)
    assert choose_precision("auto", TOWERS, CPU, []) == "bfloat16"
    hardware(native=True, amx=True)
    assert choose_precision("auto", TOWERS, CPU, []) == MIXED
    assert choose_precision("auto", TOWERS, torch.device("meta"), []) == "bfloat16"
    assert choose_precision("auto", Encoder(text=TOWERS.embedder("text")), CPU, []) == "float32"
    assert choose_precision("auto", Encoder(text=Part(nn.Linear(128, 512))), CPU, []) == "bfloat16"
    for asked in ("float32", "bfloat16", "float16", MIXED):
        assert choose_precision(asked, TOWERS, CPU, []) == asked


def test_processes_compute_in_what_all_of_their_devices_have(hardware, monkeypatch):
    hardware(native=True)
    monkeypatch.setattr(
        "mmcl.training.devices.distributed.all_reduce_max", lambda value, device: max(value, 1.0)
    )  # another's
    assert choose_precision("auto", TOWERS, CPU, []) == "float32"


@pytest.mark.parametrize("begun", ["bfloat16", "float32"])
def test_a_run_of_an_older_version_keeps_the_precision_it_began_in(tmp_path, hardware, caplog, begun):
    linear = nn.Linear(2, 2)
    save_checkpoint(tmp_path, linear, torch.optim.SGD(linear.parameters()), Progress(1, precision=begun), keep=1)
    hardware(native=begun == "float32")  # it goes on where `auto` is the other one
    assert choose_precision("auto", TOWERS, CPU, list_checkpoints(tmp_path)) == begun
    assert ("resumed in bfloat16" in caplog.text and "slow" in caplog.text) == (begun == "bfloat16")
    assert choose_precision("float16", TOWERS, CPU, list_checkpoints(tmp_path)) == "float16"


def test_a_precision_for_each_tower_names_all_of_them():
    with pytest.raises(MmclError, match=r"training.precision: it names image, but the towers are image, text"):
        choose_precision({"image": "bfloat16"}, TOWERS, CPU, [])


def test_a_precision_is_described():
    assert (describe_precision(MIXED), outermost(MIXED)) == ("bfloat16 (text: float32)", "bfloat16")
    assert (describe_precision("float32"), outermost({"text": "float32"})) == ("float32", "float32")


def test_a_tower_in_float32_computes_in_it_within_autocast_as_its_momentum_copy_does(shapes_config, tmp_path):
    method = build_method(load_config(shapes_config), tmp_path)
    text = method.encoder.embedder("text")
    method.copied = MomentumCopy({"text": text}, 0.9)
    set_precision(method, MIXED)
    inputs = {"input_ids": torch.ones(2, 4, dtype=torch.int64), "attention_mask": torch.ones(2, 4, dtype=torch.int64)}
    pixels = torch.zeros(2, *[method.encoder.image().processor.size] * 2, 3, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        image = method.encoder.embedder("image")(pixels=pixels)
        found = [text(**inputs), text.features(**inputs), method.copied("text", **inputs)]
    assert image.dtype == torch.bfloat16
    assert {of.dtype for of in found} == {torch.float32}


def test_the_choice_is_in_the_config_of_the_run_and_a_resumed_one_keeps_it(tmp_path, shapes_config, hardware, caplog):
    settings = shapes_config["training"] | {"epochs": 0.01, "save_every": 1, "precision": "auto"}
    config = shapes_config | {"training": settings, "evaluation": {}}
    caplog.set_level("INFO", logger="mmcl")
    hardware(native=True, amx=True)
    run = train(config, out=tmp_path / "run", show_progress=False)
    assert run.config.training.precision == MIXED
    assert "bfloat16 (text: float32)" in caplog.text
    assert run.model.card["training"]["precision"] == "bfloat16 (text: float32)"
    hardware(native=True)  # it goes on where `auto` is another one
    longer = config | {"training": settings | {"epochs": 0.02}}
    train(longer, out=tmp_path / "run", resume=True, show_progress=False)
    assert Run(tmp_path / "run").config.training.precision == MIXED
    repeated = train(run.folder / "config.yaml", out=tmp_path / "again", show_progress=False)
    assert repeated.config.training.precision == MIXED

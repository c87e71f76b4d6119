"""Checkpoint files of open_clip, of OpenAI and of trainers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import ImageTowerConfig, TextTowerConfig
from mmcl.formats.open_clip.checkpoint_files import read_state
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.runtime.errors import MmclError

from ..conftest import CAPTIONS, TINY, VISION, library_features, open_clip_folder, sample_images
from .checked import check_equal, check_refused


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.usefixtures("tiny")
def test_checkpoint_files_of_every_kind_open_by_name_and_alone(tmp_path):
    library = open_clip_folder(tmp_path / "theirs", {**TINY, "quick_gelu": True})
    expected = library_features(*library)
    state = load_file(tmp_path / "theirs" / "open_clip_model.safetensors")
    halves = {(key if key.startswith(("visual", "logit")) else f"text.{key}"): value for key, value in state.items()}
    files = {name: tmp_path / name for name in ("plain.pt", "epoch_3.pt", "halves.safetensors", "RN50.pt")}
    torch.save(state, files["plain.pt"])
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {}}, files["epoch_3.pt"])
    save_file(halves, files["halves.safetensors"])
    openai_archive(state, files["RN50.pt"])
    for file in files.values():
        check_equal(mmcl.load(f"tiny-ViT-quickgelu/{file}"), *expected)
    check_equal(mmcl.load(files["RN50.pt"]), *expected)  # OpenAI's layout: QuickGELU
    for file in list(files.values())[:3]:
        message = check_refused(file)
        assert f"'tiny-ViT/{file}' or 'tiny-ViT-quickgelu/{file}'" in message
    assert f"use 'tiny-ViT-quickgelu/{files['RN50.pt']}'" in check_refused(f"tiny-ViT/{files['RN50.pt']}")
    assert "not the weights of this architecture" in check_refused(f"tiny-RN/{files['plain.pt']}")


def openai_archive(state, path):
    """Weights as OpenAI distributes them: a TorchScript archive with three numbers beside, and half precision."""

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Nothing()
    for key, value in state.items():
        *modules, last = key.split(".")
        module = root
        for name in modules:
            if not hasattr(module, name):
                module.add_module(name, Nothing())
            module = getattr(module, name)
        module.register_buffer(last, value)
    for key, number in {"input_resolution": 32, "context_length": 20, "vocab_size": 49408}.items():
        root.register_buffer(key, torch.tensor(number))
    torch.jit.save(torch.jit.script(root), str(path))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "dim", "vision"),
    [
        ("tiny-ViT", 24, {**VISION, "image_size": 96}),
        ("tiny-RN", 20, {"layers": [1] * 4, "width": 16, "image_size": 96}),
    ],
)
def test_a_checkpoint_keeps_the_image_size_it_was_trained_with(tmp_path, name, dim, vision):
    config = {**TINY, "embed_dim": dim, "vision_cfg": vision}
    expected = library_features(*open_clip_folder(tmp_path / "theirs", config))
    encoder = mmcl.load(f"{name}/{tmp_path / 'theirs' / 'open_clip_model.safetensors'}")
    assert encoder.image_size == 96
    check_equal(encoder, *expected)


def test_damaged_and_foreign_files_are_distinguished(tmp_path):
    (tmp_path / "noise.pt").write_bytes(b"1234")
    assert "damaged" in check_refused(tmp_path / "noise.pt")
    torch.save({"weights": ImageConfig()}, tmp_path / "objects.pt")
    assert "never unpickled" in check_refused(tmp_path / "objects.pt")
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert "no visual tower" in check_refused(tmp_path / "other.safetensors")
    open_clip_folder(tmp_path / "model", TINY)
    shutil.move(tmp_path / "model" / "open_clip_model.safetensors", tmp_path / "alone.safetensors")
    assert "none of open_clip's" in check_refused(tmp_path / "alone.safetensors")
    assert "weights are missing" in check_refused(tmp_path / "model")
    (tmp_path / "model" / "open_clip_config.json").write_text("{}")
    assert "damaged" in check_refused(tmp_path / "model")


@pytest.mark.usefixtures("tiny")
def test_towers_of_a_config_take_weights_from_a_file(tmp_path):
    model, transform, tokenizer = open_clip_folder(tmp_path / "theirs", TINY)
    file = str(tmp_path / "theirs" / "open_clip_model.safetensors")
    _, image = build_image_tower(ImageTowerConfig(name="open_clip:tiny-ViT", pretrained=file), ImageConfig(size=32))
    processor, text = build_text_tower(TextTowerConfig(name="open_clip:tiny-ViT", pretrained=file, max_tokens=12))
    image.eval(), text.eval()
    short = [CAPTIONS[0], CAPTIONS[1]]
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(sample_images()[0]))[None]
        torch.testing.assert_close(image(pixels), model.encode_image(transform(sample_images()[0])[None]))
        inputs = processor.collate(processor.tokenize(short)[0])
        torch.testing.assert_close(text(**inputs), model.encode_text(tokenizer(short)))
    assert processor.tokenize([CAPTIONS[3]])[0][0].shape == (12,)
    _, larger = build_image_tower(ImageTowerConfig(name="open_clip:tiny-ViT", pretrained=file), ImageConfig(size=64))
    assert larger.net.positional_embedding.shape == (65, 32)  # interpolated
    wide = ImageTowerConfig(name="open_clip:tiny-ViT", args={"width": 48, "patch_size": 16})
    assert build_image_tower(wide, ImageConfig(size=32))[1].net.conv1.weight.shape == (48, 3, 16, 16)
    for settings, message in (
        ({"args": {"widht": 48}}, "did you mean 'width'"),
        ({"pretrained": "no-tag"}, "has no weights"),
        ({"pretrained": file, "args": {"width": 48}}, "not the weights of this architecture"),
    ):
        with pytest.raises(MmclError, match=message):
            build_image_tower(ImageTowerConfig(name="open_clip:tiny-ViT", **settings), ImageConfig(size=32))
    with pytest.raises(MmclError, match="reads at most 20"):
        build_text_tower(TextTowerConfig(name="open_clip:tiny-ViT", max_tokens=30))


WRAPPED = {
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "compiled within data parallelism": lambda state: {
        f"module._orig_mod.{key}": value for key, value in state.items()
    },
    "lightning": lambda state: {
        "state_dict": {**{f"model.{key}": value for key, value in state.items()}, "loss.scale": torch.ones(1)},
        "epoch": 3,
    },
    "under model": lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    "under model_state_dict": lambda state: {"model_state_dict": state, "loss": np.float64(0.5)},
    "sharded": lambda state: {f"net._fsdp_wrapped_module.{key}": value for key, value in state.items()},
    "with an average": lambda state: {
        "state_dict": state,
        "state_dict_ema": {key: 0 * value for key, value in state.items()},
    },
    "parts compiled": lambda state: {
        key.replace("visual.", "visual._orig_mod."): value for key, value in state.items()
    },
}


@pytest.mark.usefixtures("tiny")
def test_what_trainers_put_around_the_weights_is_taken_off(tmp_path):
    expected = library_features(*open_clip_folder(tmp_path / "theirs", TINY))
    state = load_file(tmp_path / "theirs" / "open_clip_model.safetensors")
    for name, wrap in WRAPPED.items():
        torch.save(wrap(state), tmp_path / "epoch.pt")
        read, layout = read_state(tmp_path / "epoch.pt")
        assert layout == "open_clip", name
        assert read.keys() == state.keys(), name
        assert all(torch.equal(read[key], state[key]) for key in state), name
    check_equal(mmcl.load(f"tiny-ViT/{tmp_path / 'epoch.pt'}"), *expected)


def test_a_file_of_several_models_is_refused(tmp_path):
    parts = {f"{name}.visual.proj": torch.zeros(2) for name in ("student", "other")}
    torch.save(parts, tmp_path / "two.pt")
    assert "several models ('other', 'student')" in check_refused(tmp_path / "two.pt")
    parts["student.visual.proj"][0] = float("nan")
    torch.save({"student.visual.proj": parts["student.visual.proj"]}, tmp_path / "nan.pt")
    assert "'visual.proj' has 1 values that are NaN" in check_refused(tmp_path / "nan.pt")

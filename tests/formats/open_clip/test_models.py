"""Models of open_clip by name and from folders, against that library itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import ImageTowerConfig, ModelConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding import Encoder
from mmcl.encoding.corpora.opening import _model_name
from mmcl.formats.start import start_from
from mmcl.formats.towers.image import build_image_tower, describe_image_tower, rebuild_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.runtime.errors import MmclError

from ..conftest import CAPTIONS, TEXT, TINY, library_features, open_clip_folder
from .checked import check_equal, check_refused

BIDIRECTIONAL = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
TIMM = {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
CONFIGS = {
    "gelu": (TINY, {}),
    "quickgelu": ({**TINY, "quick_gelu": True}, {}),
    "resnet": ({**TINY, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}, {}),
    "siglip": (
        {**TINY, "text_cfg": BIDIRECTIONAL, "init_logit_bias": -10, "custom_text": True},
        {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
    ),
    "timm": ({**TINY, "vision_cfg": TIMM, "custom_text": True}, {"interpolation": "bilinear"}),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_gives_the_librarys_own_features_and_so_does_what_is_saved(tmp_path, kind):
    config, preprocessing = CONFIGS[kind]
    library = open_clip_folder(tmp_path / "theirs", config, **preprocessing)
    expected = library_features(*library)
    encoder = mmcl.load(tmp_path / "theirs")
    check_equal(encoder, *expected)
    assert encoder.logit_scale == pytest.approx(library[0].logit_scale.item())
    assert (encoder.logit_bias is not None) == (kind == "siglip")
    encoder.save(tmp_path / "ours")
    again = mmcl.load(tmp_path / "ours")
    check_equal(again, *expected)
    assert (again.logit_scale, again.logit_bias) == (encoder.logit_scale, encoder.logit_bias)
    assert again.fingerprint() == encoder.fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-32-quickgelu"])
def test_the_real_architectures_give_the_librarys_own_features(tmp_path, name):
    expected = library_features(*open_clip_folder(tmp_path / name, open_clip.get_model_config(name)))
    check_equal(mmcl.load(tmp_path / name), *expected)


def test_captions_are_padded_only_as_far_as_the_longest_where_that_is_exact(tmp_path):
    for kind, length in (("gelu", 5), ("siglip", 20)):
        open_clip_folder(tmp_path / kind, CONFIGS[kind][0])
        embedder = mmcl.load(tmp_path / kind).embedder("text")
        processor, tower = embedder.processor, embedder.tower
        tokens, cut = processor.tokenize(["a red bicycle", CAPTIONS[3]])
        assert (len(tokens[0]), len(tokens[1]), cut) == (5, 20, 1)
        shapes = []
        tower.net.register_forward_pre_hook(lambda net, inputs, shapes=shapes: shapes.append(inputs[0].shape))
        tower(**processor.collate(tokens[:1]))
        assert shapes == [(1, length)]


@pytest.mark.parametrize("kind", ["gelu", "siglip"])
def test_fewer_tokens_change_only_the_texts_that_are_cut(tmp_path, kind):
    """A text half that reads the last position has to get the whole context, or it reads another one."""
    open_clip_folder(tmp_path / "theirs", CONFIGS[kind][0])
    expected = mmcl.load(tmp_path / "theirs", dtype="float32").encode(CAPTIONS[:3])
    shorter = Encoder(
        start_from(ModelConfig(name=str(tmp_path / "theirs"), text={"max_tokens": 12}), ImageConfig(), {"text": "text"})
    )
    shorter.set_compute("float32")
    np.testing.assert_allclose(shorter.encode(CAPTIONS[:3]), expected, atol=1e-5)
    shorter.save(tmp_path / "ours")
    again = mmcl.load(tmp_path / "ours", dtype="float32")
    np.testing.assert_allclose(again.encode(CAPTIONS[:3]), expected, atol=1e-5)


def test_a_text_that_just_fits_is_not_counted_as_cut(tmp_path):
    open_clip_folder(tmp_path / "model", TINY)
    processor = mmcl.load(tmp_path / "model").embedder("text").processor
    assert [len(ids) for ids in processor.tokenize(["dog " * 17, "dog " * 18, "dog " * 19])[0]] == [19, 20, 20]
    assert processor.tokenize(["dog " * 17, "dog " * 18, "dog " * 19])[1] == 1
    theirs = open_clip.SimpleTokenizer(context_length=20)(CAPTIONS)
    ours = processor.collate(processor.tokenize(CAPTIONS)[0])["input_ids"]
    assert torch.equal(ours, theirs)  # the longest caption fills the context


@pytest.mark.usefixtures("tiny")
def test_what_is_noted_of_an_encoder_beside_its_vectors_opens_it_again(tmp_path, monkeypatch):
    expected = library_features(*open_clip_folder(tmp_path / "theirs", TINY))
    shutil.copy(tmp_path / "theirs" / "open_clip_model.safetensors", tmp_path / "epoch_3.safetensors")
    monkeypatch.chdir(tmp_path)
    names = ("tiny-ViT/epoch_3.safetensors", "theirs/open_clip_model.safetensors")
    noted = [_model_name(mmcl.load(name)) for name in names]
    monkeypatch.chdir("/")
    for name in noted:
        check_equal(mmcl.load(name), *expected)
    monkeypatch.setattr(open_clip, "is_pretrained_cfg", lambda name, tag: tag == "ours")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: tmp_path / "epoch_3.safetensors")
    check_equal(mmcl.load(_model_name(mmcl.load("tiny-ViT/ours"))), *expected)


def test_the_wrong_activation_is_refused_before_anything_is_fetched(monkeypatch):
    def fetch(*_, **__):
        raise AssertionError("the refusal comes first")

    monkeypatch.setattr(open_clip, "download_pretrained", fetch)
    assert "use 'ViT-B-32-quickgelu/openai'" in check_refused("ViT-B-32/openai")
    assert "use 'ViT-B-32/laion2b_s34b_b79k'" in check_refused("ViT-B-32-quickgelu/laion2b_s34b_b79k")
    assert "trained with QuickGELU" in check_refused("RN50/openai")
    with pytest.raises(MmclError, match="use 'ViT-B-32-quickgelu/openai'"):
        build_image_tower(ImageTowerConfig(name="open_clip:ViT-B-32", pretrained="openai"), ImageConfig())
    with pytest.raises(MmclError, match="use 'ViT-B-32-quickgelu/openai'"):
        build_text_tower(TextTowerConfig(name="open_clip:ViT-B-32", pretrained="openai"))


def test_every_tag_of_the_registry_is_accepted_under_one_activation_and_refused_under_the_other(monkeypatch):
    def fetch(tag):
        raise OSError("no network\nin this test")

    monkeypatch.setattr(open_clip, "download_pretrained", fetch)
    for name, tag in open_clip.list_pretrained():
        quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
        fits = bool(open_clip.get_model_config(name).get("quick_gelu")) == quick
        assert ("cannot be fetched (no network)" if fits else "weights were trained with") in check_refused(
            f"{name}/{tag}"
        )


def test_names_tags_and_files_that_are_not_there_are_reported_with_what_is(tmp_path, monkeypatch):
    assert "laion2b_s34b_b79k" in check_refused("ViT-B-32")
    assert "did you mean 'ViT-B-32'" in check_refused("ViT-B-33/openai")
    assert "has no weights 'laion3b'; there are: openai" in check_refused("ViT-B-32/laion3b")
    assert "no file nowhere/epoch.pt" in check_refused("ViT-B-32/nowhere/epoch.pt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not to be had from the hub" in check_refused("hf-hub:nobody/no-such-model")


def test_folders_of_the_first_format_are_still_read(tmp_path):
    processor, image = build_image_tower(ImageTowerConfig(name="open_clip:RN50"), ImageConfig(size=32))
    spec = describe_image_tower(processor, image)
    old = {**{key: spec[key] for key in ("name", "size", "resize", "mean", "std")}, "args": {}}
    processor_again, rebuilt = rebuild_image_tower(json.loads(json.dumps(old)))
    assert {name: value.shape for name, value in rebuilt.state_dict().items()} == {
        name: value.shape for name, value in image.state_dict().items()
    }
    assert processor_again == processor


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"resize_mode": "shorter"}, "resize_mode 'shorter'"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"mean": [0.5]}, "three channels"),
        ({"std": ["a", "b", "c"]}, "three channels"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused_in_one_line(settings, why):
    from types import SimpleNamespace

    from mmcl.formats.open_clip.models import _preprocessing

    with pytest.raises(MmclError, match=why):
        _preprocessing("tiny", SimpleNamespace(image_size=32), settings)


def test_a_folders_settings_cannot_have_a_tokenizer_or_a_text_half_of_code(tmp_path, monkeypatch):
    """``tokenizer_kwargs`` go to transformers, which would run a tokenizer's Python if they said so."""
    import transformers

    asked = []

    def ask(source, **options):
        asked.append(options["trust_remote_code"])
        raise OSError("none there")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", ask)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", ask)
    trusting = {"hf_tokenizer_name": "org/name", "tokenizer_kwargs": {"trust_remote_code": True}}
    open_clip_folder(tmp_path / "model", TINY)
    for text in ({**TEXT, **trusting}, {"hf_model_name": "org/name", **trusting}):
        config = {"model_cfg": {**TINY, "text_cfg": text}}
        (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(config))
        assert "none there" in check_refused(tmp_path / "model")
    assert asked == [False, False]


def with_text_half_of_transformers(folder):
    """A folder of open_clip's whose text half is a BERT; the library's own model of it."""
    import transformers

    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(vocab_size=60), 20)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    bert = transformers.BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "theirs")
    text = {"hf_model_name": str(folder / "bert"), "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
    text |= {"hf_tokenizer_name": "org/name", "context_length": 20, "hf_model_pretrained": False}
    return open_clip_folder(folder / "theirs", {**TINY, "text_cfg": text, "custom_text": True})


def test_a_text_half_of_transformers_gives_the_librarys_own_features_and_so_does_what_is_saved(tmp_path):
    expected = library_features(*with_text_half_of_transformers(tmp_path))
    encoder = mmcl.load(tmp_path / "theirs")
    check_equal(encoder, *expected)
    encoder.save(tmp_path / "ours")
    shutil.rmtree(tmp_path / "bert")  # nothing else is needed
    check_equal(mmcl.load(tmp_path / "ours"), *expected)


def test_a_text_half_of_transformers_names_no_code_of_the_hub(tmp_path):
    with_text_half_of_transformers(tmp_path)
    mmcl.load(tmp_path / "theirs").save(tmp_path / "ours")
    path = tmp_path / "ours" / "mmcl.json"
    described = json.loads(path.read_text())
    described["towers"]["text"]["tower"]["config"]["text_cfg"]["hf_config"]["attn_implementation"] = "org/kernel"
    path.write_text(json.dumps(described))
    assert "names code of the hub, 'org/kernel', which is not run" in check_refused(tmp_path / "ours")


ODD = [
    (("model_cfg",), "x"),
    (("model_cfg", "embed_dim"), "x"),
    (("model_cfg", "embed_dim"), 1 << 40),
    (("model_cfg", "vision_cfg"), None),
    (("model_cfg", "vision_cfg", "layers"), 1 << 40),
    (("model_cfg", "vision_cfg", "patch_size"), 0),
    (("model_cfg", "vision_cfg", "image_size"), [32]),
    (("model_cfg", "text_cfg", "vocab_size"), 1 << 26),
    (("model_cfg", "text_cfg", "heads"), 0),
    (("preprocess_cfg",), "x"),
    (("preprocess_cfg", "mean"), ["x"]),
    (("preprocess_cfg", "resize_mode"), "x"),
    (("preprocess_cfg", "std"), [0.5, 0.5]),
]


def test_a_description_of_another_kind_or_size_is_refused_in_one_line(tmp_path):
    open_clip_folder(tmp_path / "model", TINY, mean=[0.5] * 3)
    path = tmp_path / "model" / "open_clip_config.json"
    original = path.read_text()
    for keys, value in ODD:
        content = inner = json.loads(original)
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        path.write_text(json.dumps(content))
        check_refused(tmp_path / "model")

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.formats.folder import preprocessor
from mmcl.formats.transformers.image_processors import preprocessing, read_processor
from mmcl.runtime.errors import MmclError

from ..conftest import CAPTIONS, sample_images

transformers = pytest.importorskip("transformers")
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**VISION, "max_position_embeddings": 20}


def clip_folder(folder, *, tokenizer_masks=True, end=None):
    """A tiny random ``CLIPModel`` with a byte-level tokenizer of CLIP's own kind."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer({piece: i for i, piece in enumerate(pieces)}, [], model_max_length=20)
    last = len(pieces) - 1
    ids = {"bos_token_id": last - 1, "eos_token_id": last if end is None else end, "pad_token_id": last}
    config = transformers.CLIPConfig(
        text_config={**TEXT, **ids, "vocab_size": len(pieces)},
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    return finish(transformers.CLIPModel(config), tokenizer, "CLIPImageProcessorPil", folder, {"shortest_edge": 32})


def siglip_folder(folder, *, tokenizer_masks=False, padding_side="right"):
    """A tiny random ``SiglipModel``, whose tokenizer gives no mask, as the published ones do not."""
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(vocab_size=60), 20)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = padding_side
    if not tokenizer_masks:
        tokenizer.model_input_names = ["input_ids"]
    config = transformers.SiglipConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "projection_size": 32},
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
    )
    size = {"height": 32, "width": 32}
    return finish(transformers.SiglipModel(config), tokenizer, "SiglipImageProcessorPil", folder, size)


def finish(model, tokenizer, processor, folder, size):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"crop_size": {"height": 32, "width": 32}} if "shortest_edge" in size else {}
    processor = getattr(transformers, processor)(size=size, **crop)
    processor.save_pretrained(folder)
    return model.eval(), tokenizer, processor


@torch.no_grad()
def library_features(model, tokenizer, processor):
    """The library's own unit-length features, with padding to the whole context."""
    processed = processor(sample_images(), return_tensors="pt")
    read = tokenizer(CAPTIONS, padding="max_length", max_length=20, truncation=True, return_tensors="pt")
    both = model.get_image_features(**processed).pooler_output, model.get_text_features(**read).pooler_output
    return [torch.nn.functional.normalize(features, dim=1).numpy() for features in both]


def check_equal(encoder, images, texts):
    encoder.set_compute("float32")
    np.testing.assert_allclose(encoder.encode(sample_images()), images, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(CAPTIONS), texts, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (clip_folder, {}),
        (clip_folder, {"end": 2}),  # as OpenAI's configs say: the highest id is read
        (siglip_folder, {}),
        (siglip_folder, {"tokenizer_masks": True}),
        (siglip_folder, {"padding_side": "left"}),
        (siglip_folder, {"padding_side": "left", "tokenizer_masks": True}),
    ],
)
def test_a_folder_gives_the_librarys_own_features_and_so_does_what_is_saved(tmp_path, make, settings):
    library = make(tmp_path / "theirs", **settings)
    expected = library_features(*library)
    encoder = mmcl.load(tmp_path / "theirs")
    check_equal(encoder, *expected)
    assert encoder.logit_scale == pytest.approx(library[0].logit_scale.item())
    assert (encoder.logit_bias is None) == (make is clip_folder)
    encoder.save(tmp_path / "ours")
    again = mmcl.load(tmp_path / "ours")
    check_equal(again, *expected)
    assert (again.logit_scale, again.logit_bias) == (encoder.logit_scale, encoder.logit_bias)


def test_fewer_tokens_change_only_the_texts_that_are_cut(tmp_path):
    """SigLIP reads the last position: it has to get the whole context, or it reads another one."""
    expected = library_features(*siglip_folder(tmp_path / "theirs"))[1]
    short = [0, 2, 4]
    captions = [CAPTIONS[i] for i in short]
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    processor = encoder.embedder("text").processor
    processor.max_tokens = 19
    assert processor.tokenize(captions)[1] == 0
    np.testing.assert_allclose(encoder.encode(captions), expected[short], atol=1e-5)
    encoder.save(tmp_path / "ours")
    np.testing.assert_allclose(
        mmcl.load(tmp_path / "ours", dtype="float32").encode(captions), expected[short], atol=1e-5
    )


@pytest.mark.parametrize("make", [clip_folder, siglip_folder])
def test_a_folder_without_its_tokenizers_files_is_refused(tmp_path, make):
    make(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(MmclError, match="tokenizer's files are missing"):
        mmcl.load(tmp_path)


def test_a_checkpoint_file_opens_by_the_configs_beside_it(tmp_path):
    expected = library_features(*clip_folder(tmp_path / "theirs"))
    file = tmp_path / "theirs" / "epoch_3.pt"
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    check_equal(mmcl.load(file), *expected)
    check_equal(mmcl.load(tmp_path / "theirs" / "model.safetensors"), *expected)
    shutil.move(file, tmp_path / "alone.pt")
    with pytest.raises(MmclError, match=r"put the model's config\.json"):
        mmcl.load(tmp_path / "alone.pt")


def test_folders_with_something_missing_are_refused_in_one_line(tmp_path):
    clip_folder(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(MmclError, match="the weights are missing"):
        mmcl.load(tmp_path / "theirs")
    state = load_file(tmp_path / "model.safetensors")
    from safetensors.torch import save_file

    partial = {key: value for key, value in state.items() if "text_projection" not in key}
    save_file(partial, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MmclError, match=r"lack text_projection\.weight"):
        mmcl.load(tmp_path / "theirs")


def test_bilinear_and_plain_numbers_of_an_image_processor_are_followed(tmp_path):
    model, tokenizer, _ = siglip_folder(tmp_path / "theirs")
    settings = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.1, 0.2, 0.3]}
    processor = transformers.SiglipImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())["resample"] == 2
    check_equal(mmcl.load(tmp_path / "theirs"), *library_features(model, tokenizer, processor))


PROCESSORS = {
    "resized, then cropped": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    "resized to less than the crop": {"size": {"shortest_edge": 20}, "crop_size": 32},
    "squashed, then cropped": {"size": {"height": 48, "width": 48}, "crop_size": {"height": 32, "width": 32}},
    "squashed": {"size": [32, 32], "do_center_crop": False},
    "not resized": {"do_resize": False, "crop_size": 32},
    "levels as they are": {"size": 32, "crop_size": 32, "do_rescale": False},
    "another factor": {"size": 32, "crop_size": 32, "rescale_factor": 1 / 127.5},
    "not normalised": {"size": 32, "crop_size": 32, "do_normalize": False},
    "neither rescaled nor normalised": {"size": 32, "crop_size": 32, "do_normalize": False, "do_rescale": False},
    "one mean and deviation": {"size": 32, "crop_size": 32, "image_mean": 0.4, "image_std": 0.3},
    **{f"filter {number}": {"size": 32, "crop_size": 32, "resample": number} for number in range(6)},
    "nothing said of resizing": {"size": 32, "crop_size": 32, "do_resize": None},
}


@pytest.fixture(scope="module")
def clip_to_change(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip_folder(folder)
    return folder


@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS)
def test_image_processors_are_followed_to_the_pixel(tmp_path, settings):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **settings})
    )
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    check_pixels(preprocessing(read_processor(tmp_path, "tiny"), "tiny"), theirs)
    # What is written of it in our folders is read again as the same.
    ours = preprocessing(theirs, "tiny")
    check_pixels(ours, transformers.CLIPImageProcessorPil(**preprocessor(ours)))


def check_pixels(ours, theirs):
    mean, std = (np.array(three).reshape(3, 1, 1) for three in (ours.mean, ours.std))
    for image in sample_images():
        pixels = ours.prepare(image).pixels.transpose(2, 0, 1)
        np.testing.assert_allclose((pixels / 255 - mean) / std, theirs(image)["pixel_values"][0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"size": {"longest_edge": 32}}, "size names longest_edge"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "size names longest_edge and shortest_edge"),
        ({"size": {"max_height": 32, "max_width": 32}}, "size names max_height and max_width"),
        ({"size": {"height": 32, "width": 48}, "do_center_crop": False}, "32 × 48"),
        ({"crop_size": {"height": 32, "width": 48}}, "32 × 48"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "no square"),
        ({"do_resize": False, "do_center_crop": False}, "keep their sizes"),
        ({"do_pad": True}, "do_pad"),
        ({"image_mean": None}, "image_mean or image_std is missing"),
        ({"resample": 9}, "resample 9"),
        ({"resample": None}, "resample None"),
        ({"rescale_factor": None}, "rescale_factor or image_std is 0"),
        ({"image_mean": [0.5]}, "image_mean is of 1 channels"),
        ({"image_std": [0.5, 0.0, 0.5]}, "is 0"),
        ({"image_mean": "0.5"}, "image_mean holds '0.5'"),
        ({"image_std": [0.5, float("nan"), 0.5]}, "image_std holds 'nan'"),
        ({"rescale_factor": "1/255"}, "rescale_factor holds '1/255'"),
        ({"size": {"shortest_edge": -3}}, "size is '-3'"),
        ({"size": {"shortest_edge": 32.5}}, "size is '32.5'"),
        ({"crop_size": {"height": 10**9, "width": 10**9}}, "crop_size is '1000000000'"),
        ({"size": "large"}, "cannot be opened"),
        ({"size": {"edge": 3}}, "cannot be opened"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "steps of its own"),
        ({"image_processor_type": "NoImageProcessor"}, "cannot be opened"),
    ],
)
def test_image_processors_that_cannot_be_followed_are_refused_in_one_line(clip_to_change, settings, why):
    (clip_to_change / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **settings})
    )
    with pytest.raises(MmclError, match=why):
        mmcl.load(clip_to_change)


@pytest.mark.parametrize("text", ["{", "[]", "7", "", '{"size": {"shortest_edge": "a"}}'])
def test_damaged_settings_of_images_are_not_taken_for_none(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(MmclError):
        preprocessing(read_processor(tmp_path, "tiny"), "tiny")


@pytest.mark.parametrize("where", ["config", "config of one half", "ours", "ours, image"])
def test_code_of_the_hub_is_named_by_no_description(tmp_path, monkeypatch, where):
    """transformers fetches a kernel by such a name when a model is built, and runs it."""
    fetched = []
    monkeypatch.setattr(
        "transformers.integrations.hub_kernels.load_and_register_attn_kernel", lambda name, *_: fetched.append(name)
    )
    clip_folder(tmp_path / "theirs")
    path, code = tmp_path / "theirs" / "config.json", "org/kernel"
    if where.startswith("ours"):
        mmcl.load(tmp_path / "theirs").save(tmp_path / "ours")
        path = tmp_path / "ours" / "mmcl.json"
    described = json.loads(path.read_text())
    if where.startswith("ours"):
        half = "image" if where.endswith("image") else "text"
        described["towers"][half]["tower"]["config"]["attn_implementation"] = code
    else:
        described["attn_implementation"] = code if where == "config" else {"text_config": code}
    path.write_text(json.dumps(described))
    with pytest.raises(MmclError, match=r"names code of the hub, 'org/kernel', which is not run; remove that line"):
        mmcl.load(path.parent)
    assert fetched == []

"""Encoding, saving and loading, against the libraries that the towers come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

CAPTIONS = [
    f"a {size} {colour} {thing}" for size in ("big", "small") for colour in ("red", "blue") for thing in ("dog", "car")
]
NET = {"name": "timm:resnet10t", "args": {"channels": [8, 8, 8, 8], "stem_width": 8}}


def make_encoder(*, image=True, text=True, head="mlp", dtype="float32"):
    torch.manual_seed(0)
    embedders = {}
    if image:
        processor, tower = build_image_tower(ImageTowerConfig(**NET), ImageConfig(size=32))
        embedders["image"] = ImageEmbedder(processor, tower, Head(HeadConfig(), tower.width, 16))
    if text:
        settings = TextTowerConfig(layers=1, width=16, heads=2, tokenizer={"vocab_size": 60})
        processor, tower = build_text_tower(settings, train_tokenizer(CAPTIONS, settings.tokenizer, 64))
        embedders["text"] = TextEmbedder(processor, tower, Head(HeadConfig(kind=head), tower.width, 16))
    encoder = Encoder(Towers(embedders, 16, "tiny")).eval()
    encoder.set_compute(dtype)
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture
def image_path(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_kinds_of_input_orders_and_shapes(encoder, image_path):
    opened = Image.open(image_path)
    mixed = ["a red dog", image_path, "a blue car", opened, np.asarray(opened), image_path.read_bytes()]
    vectors = encoder.encode(mixed)
    assert vectors.shape == (6, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for position, item in enumerate(mixed):
        alone = encoder.encode(item)
        assert alone.shape == (16,)
        np.testing.assert_allclose(alone, vectors[position], atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)
    assert encoder.encode(str(image_path), modality="image").shape == (16,)


def test_order_and_neighbours_do_not_change_a_text_vector(encoder):
    texts = [*CAPTIONS, "", "dog " * 100, CAPTIONS[0]]
    together = encoder.encode(texts)
    for batch_size in (1, 3, "auto"):
        np.testing.assert_allclose(encoder.encode(texts, batch_size=batch_size), together, atol=1e-5)
    backwards = encoder.encode(texts[::-1])[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-5)
    assert np.array_equal(together[0], together[-1])


def test_a_vector_that_is_no_finite_number_is_an_error(encoder):
    weight = next(encoder.embedder("text").parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:] = float("nan")
    try:
        with pytest.raises(MmclError, match="the model gives 2 of 2 inputs NaN or infinity"):
            encoder.encode(["a red shoe", "a bag"])
        with pytest.raises(MmclError, match="NaN or infinity"):
            list(encoder.encode_stream(["a red shoe"]))
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_options_of_the_result(encoder):
    full = encoder.encode(CAPTIONS, normalize=False)
    assert not np.allclose(np.linalg.norm(full, axis=1), 1)
    short = encoder.encode(CAPTIONS, truncate_dim=4)
    np.testing.assert_allclose(short, F.normalize(torch.from_numpy(full[:, :4]), dim=1).numpy(), atol=1e-6)
    assert encoder.encode(CAPTIONS, precision="float16").dtype == np.float16


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([3], {}, "input 0 is a int"),
        (["a"], {"precision": "float8"}, "precision 'float8'"),
        (["a"], {"truncate_dim": 99}, "truncate_dim 99"),
        (["a"], {"truncate_dim": True}, "truncate_dim True"),
        (["a"], {"batch_size": True}, "batch_size is True"),
        (["a"], {"prompt": "query"}, "no prompt of that name"),
        ([Path("nowhere.png")], {}, r"nowhere\.png"),
        ([b"not an image"], {}, "input 0: not a readable image"),
        ([b"an image"], {"prompt": "query"}, "prompt 'query' goes before texts, and all inputs are images"),
    ],
)
def test_bad_input_is_one_clear_line(encoder, inputs, options, message):
    with pytest.raises(MmclError, match=message):
        encoder.encode(inputs, **options)


def test_its_repr_is_one_line(encoder):
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    expected = f"Encoder('tiny': image by ResNet, text by BertModel; 16 dimensions, {parameters:,} parameters)"
    assert repr(encoder) == expected


def test_a_modality_that_the_model_lacks_is_named(image_path):
    with pytest.raises(MmclError, match="embeds text only"):
        make_encoder(image=False).encode(image_path)


def test_the_image_tower_is_timms_model(image_path):
    tower = build_image_tower(ImageTowerConfig(**NET), ImageConfig(size=32))[1].eval()
    theirs = timm.create_model("resnet10t", num_classes=0, **NET["args"]).eval()
    theirs.load_state_dict(tower.net.state_dict())
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = theirs(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    torch.testing.assert_close(tower(pixels), expected, atol=1e-5, rtol=1e-5)


def test_an_open_clip_visual_tower_is_open_clips():
    import open_clip

    tower = build_image_tower(ImageTowerConfig(name="open_clip:RN50"), ImageConfig(size=64))[1].eval()
    theirs = open_clip.create_model("RN50", force_image_size=64).visual.eval()
    theirs.load_state_dict(tower.net.state_dict())
    pixels = torch.rand(2, 3, 64, 64)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    torch.testing.assert_close(tower(pixels), theirs((pixels - mean) / std), atol=1e-5, rtol=1e-5)
    assert tower.width == 1024


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "timm:resnt18"}, "did you mean 'resnet18'"),
        ({"name": "open_clip:ViT-B-33"}, "did you mean 'ViT-B-32'"),
        ({"name": "resnet18"}, "expected 'timm:NAME'"),
        ({"name": "timm:resnet18", "args": {"colour": 1}}, r"model\.image\.args does not fit"),
        ({"name": "open_clip:RN50", "pretrained": True}, "openai"),
    ],
)
def test_unknown_image_towers_are_named_with_the_nearest(settings, message):
    with pytest.raises(MmclError, match=message):
        build_image_tower(ImageTowerConfig(**settings), ImageConfig(size=32))


def test_what_is_saved_is_loaded_and_saves_to_the_same_bytes(image_path, tmp_path):
    encoder = make_encoder(dtype="auto")  # as it is made, and as it is loaded
    encoder.save(tmp_path / "one")
    loaded = mmcl.load(tmp_path / "one")
    inputs = [*CAPTIONS, image_path]
    assert np.array_equal(loaded.encode(inputs), encoder.encode(inputs))
    assert (loaded.fast_resize, mmcl.load(tmp_path / "one", fast_resize=True).fast_resize) == (False, True)
    loaded.save(tmp_path / "two")
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()
    )
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert not any(path.suffix in {".bin", ".pt", ".pkl"} for path in (tmp_path / "one").iterdir())


@pytest.mark.parametrize("head", ["none", "linear", "mlp"])
def test_a_text_only_folder_is_a_sentence_transformers_folder(tmp_path, head):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = make_encoder(image=False, head=head)
    encoder.save(tmp_path / "model")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = [*CAPTIONS, "dog " * 100]
    expected = encoder.encode(texts)
    np.testing.assert_allclose(theirs.encode(texts), expected, atol=1e-5)
    np.testing.assert_allclose(mmcl.load(tmp_path / "model", dtype="float32").encode(texts), expected, atol=1e-6)


def test_a_sentence_transformers_folder_is_opened_as_that_library_opens_it(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    make_encoder(image=False, head="none").save(tmp_path / "model")
    (tmp_path / "model" / "mmcl.json").unlink()  # now it is theirs alone
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours = mmcl.load(tmp_path / "model", dtype="float32")
    np.testing.assert_allclose(ours.encode(CAPTIONS), theirs.encode(CAPTIONS), atol=1e-5)


def test_damaged_newer_and_missing_models_are_distinguished(encoder, tmp_path):
    folder = encoder.save(tmp_path / "model")

    def broken(name, change):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        change(copy)
        with pytest.raises(MmclError) as caught:
            mmcl.load(copy)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def newer(copy):
        description = json.loads((copy / "mmcl.json").read_text())
        (copy / "mmcl.json").write_text(json.dumps(description | {"format_version": 99, "mmcl_version": "9.0"}))

    assert "written by mmcl 9.0" in broken("newer", newer)
    assert "upgrade" in broken("newer2", newer)
    assert "damaged" in broken("json", lambda copy: (copy / "mmcl.json").write_text("{"))
    assert "damaged" in broken("keys", lambda copy: (copy / "mmcl.json").write_text("{}"))
    assert "weights are missing" in broken("gone", lambda copy: (copy / "model.safetensors").unlink())
    assert "weights are damaged" in broken("cut", lambda copy: (copy / "model.safetensors").write_bytes(b"1234"))
    assert "tokenizer" in broken("tokens", lambda copy: (copy / "tokenizer.json").unlink())
    with pytest.raises(MmclError, match="no such folder"):
        mmcl.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MmclError, match="holds no model"):
        mmcl.load(tmp_path / "empty")
    (tmp_path / "models--org--name" / "snapshots" / "0a1b").mkdir(parents=True)
    with pytest.raises(MmclError, match=r"give the folder of one snapshot, .*0a1b"):
        mmcl.load(tmp_path / "models--org--name")
    with pytest.raises(MmclError, match="no such folder, and not to be had from the hub"):
        mmcl.load("nobody/no-such-model")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(MmclError, match="not replaced"):
        encoder.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").exists()


def test_the_tokenizer_gives_sentencepieces_own_ids():
    import io

    import sentencepiece

    from mmcl.config.model import TokenizerConfig

    texts = [*CAPTIONS, "Ein GROSSER  Hund", "voilà", "ﬁne", "unseen ☃ sign", " padded "]
    model = io.BytesIO()
    config = TokenizerConfig(vocab_size=60)
    tokenizer = train_tokenizer(CAPTIONS, config, 64)
    from mmcl.data.processors import train_tokenizer as module

    honest = module.pieces_tokenizer
    module.pieces_tokenizer = lambda proto, limit: model.write(proto)
    try:
        train_tokenizer(CAPTIONS, config, 64)
    finally:
        module.pieces_tokenizer = honest
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text in texts:
        assert tokenizer(text)["input_ids"] == [2, *theirs.encode(text), 3], text


@pytest.mark.parametrize("padding", [0, 1])
def test_roberta_has_fewer_positions_than_it_holds(tmp_path, padding):
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(vocab_size=60), 10**6)  # which sets no limit of its own
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 22, "pad_token_id": padding}
    transformers.RobertaModel(transformers.RobertaConfig(**config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = mmcl.load(tmp_path)
    assert encoder.embedder("text").processor.max_tokens == 21 - padding
    assert encoder.encode("dog " * 50).shape == (16,)


@pytest.mark.parametrize("kind", ["Marian", "Encodec"])
def test_a_transformers_model_that_is_no_text_encoder_is_refused_in_one_line(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path)
    with pytest.raises(MmclError, match=f"a '{kind.lower()}' model (has a decoder, and )?is no encoder of texts"):
        mmcl.load(tmp_path)

"""Folders of sentence-transformers, both ways, against that library itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import mmcl
from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding.encoder import Encoder
from mmcl.formats.text_towers import open_text_tower
from mmcl.models.heads import Dense, Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

CORPUS = [f"a {size} {colour} {thing}" for size in ("Big", "small") for colour in ("red", "blue") for thing in ("dog",)]
TEXTS = ["a big red dog", "small", "A BLUE dog and a red one", "", "dog " * 60, "a  small   blue\ndog"]
POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
    "mean+max": ("mean", "max"),
    "cls+mean+last": ("cls", "mean", "lasttoken"),
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = {
    "bert": ("Bert", {"max_position_embeddings": 40}),
    "roberta": ("Roberta", {"max_position_embeddings": 41, "type_vocab_size": 1}),
    "mpnet": ("MPNet", {"max_position_embeddings": 41}),
    "qwen2": ("Qwen2", {"max_position_embeddings": 40, "num_key_value_heads": 1}),
}
DENSE = [Dense(12, activation="tanh"), Dense(10, bias=False), Dense(8, activation="gelu")]


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folders of transformers with tiny models of several kinds; the decoder's tokenizer pads on the left."""
    folders = {}
    pieces = train_tokenizer(CORPUS, TokenizerConfig(vocab_size=40, lowercase=False), 10**6)
    for kind, (name, settings) in KINDS.items():
        torch.manual_seed(0)
        tokenizer = byte_pairs() if kind == "qwen2" else pieces
        config = getattr(transformers, f"{name}Config")(
            **SMALL, **settings, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=0
        )
        net = getattr(transformers, f"{name}Model")(config)
        with torch.no_grad():
            for parameter in net.parameters():  # biases and gains start at 0 and 1, which would hide their loss
                parameter.add_(0.1 * torch.randn_like(parameter))
        folders[kind] = tmp_path_factory.mktemp(kind)
        net.save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def byte_pairs():
    """A tokenizer as embedding models made of decoders have it: no token before the text, one behind it."""
    from tokenizers import ByteLevelBPETokenizer, processors

    end = "<|endoftext|>"
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=280, special_tokens=[end])
    trained.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token=end, eos_token=end, padding_side="left"
    )


def theirs(library, folder, **options):
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)


def made_by_them(library, source, modes, *, limit=20, dense=(), normalize=True, lowercase=False, **options):
    """A model as that library's users build it."""
    from sentence_transformers.base.modules import Dense as TheirDense
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    include = options.pop("include_prompt", True)
    torch.manual_seed(1)
    modules = [Transformer(str(source), max_seq_length=limit, do_lower_case=lowercase)]
    modules.append(Pooling(16, modes, include_prompt=include))
    width = 16 * (1 if isinstance(modes, str) else len(modes))
    for layer in dense:
        activation = {"tanh": torch.nn.Tanh, "gelu": torch.nn.GELU, "identity": torch.nn.Identity}[layer.activation]
        modules.append(TheirDense(width, layer.width, layer.bias, activation()))
        width = layer.width
    modules += [Normalize()] if normalize else []
    return library.SentenceTransformer(modules=modules, device="cpu", **options)


def made_here(source, pooling, head=None, **options):
    opened, tower = open_text_tower(str(source))
    processor = TextProcessor(opened.tokenizer, **{"max_tokens": 20, **options})
    tower = TextTower(tower.net, processor, pooling=pooling)
    torch.manual_seed(1)
    head = Head.from_layers(tower.width, head or [])
    encoder = Encoder(
        Towers(
            {"text": TextEmbedder(processor, tower, head)}, head.layers[-1].width if head.layers else tower.width, "m"
        )
    )
    encoder.set_compute("float32")
    return encoder.eval()


def same(ours, others):
    """Unit vectors that agree to the digits that the project promises."""
    np.testing.assert_allclose(ours, others, atol=1e-5)
    np.testing.assert_array_less(1 - 1e-6, (ours * others).sum(axis=1))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_they_save_opens_here_and_goes_back(library, plain, tmp_path, kind, pooling):
    model = made_by_them(library, plain[kind], POOLINGS[pooling], normalize=kind != "mpnet")
    expected = unit(model.encode(TEXTS))
    model.save(str(tmp_path / "theirs"))
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    assert encoder.embedder("text").tower.pooling == pooling
    assert model.tokenizer.padding_side == ("left" if kind == "qwen2" else "right")
    same(encoder.encode(TEXTS), expected)
    encoder.save(tmp_path / "ours")
    np.testing.assert_allclose(theirs(library, tmp_path / "ours").encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    same(mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS), expected)


@pytest.mark.parametrize(("kind", "include"), [("bert", False), ("mpnet", True), ("qwen2", False), ("roberta", True)])
def test_every_setting_survives_both_ways(library, plain, tmp_path, kind, include):
    prompts = {"query": "red dog ", "document": ""}
    model = made_by_them(
        library,
        plain[kind],
        ("mean", "weightedmean"),
        limit=9,
        dense=DENSE,
        lowercase=True,
        include_prompt=include,
        prompts=prompts,
        default_prompt_name="query",
    )
    model.save(str(tmp_path / "theirs"))
    model = theirs(library, tmp_path / "theirs")  # which forgets to fold case for some tokenizers
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    encoder.save(tmp_path / "ours")
    for opened in (encoder, mmcl.load(tmp_path / "ours", dtype="float32")):
        same(opened.encode(TEXTS), model.encode(TEXTS))
        same(opened.encode(TEXTS, prompt="document"), model.encode(TEXTS, prompt_name="document"))
    again = theirs(library, tmp_path / "ours")
    same(again.encode(TEXTS), model.encode(TEXTS))
    same(again.encode(TEXTS, prompt_name="document"), model.encode(TEXTS, prompt_name="document"))
    assert not np.allclose(model.encode(TEXTS), model.encode(TEXTS, prompt_name="document"), atol=1e-3)
    assert (again.prompts, again.default_prompt_name, again.max_seq_length) == (prompts, "query", 9)


@pytest.mark.parametrize("pooling", ["max+mean", "last+cls", "weighted_mean"])
def test_what_is_made_here_opens_there(library, plain, tmp_path, pooling):
    """An order of poolings too that the flags of that library's older folders cannot tell."""
    prompts = {"query": "dog "}
    encoder = made_here(plain["bert"], pooling, DENSE, prompts=prompts, lowercase=True, include_prompt=False)
    encoder.save(tmp_path / "ours")
    model = theirs(library, tmp_path / "ours")
    same(encoder.encode(TEXTS), model.encode(TEXTS))
    same(encoder.encode(TEXTS, prompt="query"), model.encode(TEXTS, prompt_name="query"))
    (tmp_path / "ours" / "mmcl.json").unlink()  # now it is theirs alone
    same(
        mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS, prompt="query"),
        model.encode(TEXTS, prompt_name="query"),
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_a_models_own_pooler_becomes_a_dense_layer_there(library, plain, tmp_path, kind):
    encoder = made_here(plain[kind], "pooler", [Dense(6)])
    encoder.save(tmp_path / "ours")
    same(theirs(library, tmp_path / "ours").encode(TEXTS), encoder.encode(TEXTS))
    same(mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize(("pooling", "include"), [("first_last", True), ("pooler", False)])
def test_what_they_cannot_pool_is_a_folder_of_ours_alone(plain, tmp_path, pooling, include):
    """The pooler reads the first token of all, and there it would read the first one behind a prompt left out."""
    encoder = made_here(plain["bert"], pooling, prompts={"query": "dog "}, include_prompt=include)
    encoder.save(tmp_path / "ours")
    assert not (tmp_path / "ours" / "modules.json").exists()
    opened = mmcl.load(tmp_path / "ours", dtype="float32")
    same(opened.encode(TEXTS, prompt="query"), encoder.encode(TEXTS, prompt="query"))


def test_real_weights_both_ways(library, tmp_path):
    try:
        encoder = mmcl.load("sample:minilm", dtype="float32")
    except MmclError as error:
        pytest.skip(f"MiniLM is not to be had: {error}")
    texts = ["Two dogs run on a beach.", "", "Naïve Bayes — or not?", "the stock market fell " * 100]
    expected = theirs(library, encoder.path).encode(texts)
    same(encoder.encode(texts), expected)
    encoder.save(tmp_path / "ours")
    same(theirs(library, tmp_path / "ours").encode(texts), expected)


def write(path: Path, values):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(values))


def module(kind, path, package="sentence_transformers.models"):
    return {"idx": 0, "name": kind, "path": path, "type": f"{package}.{kind}"}


def first_generation(source, folder):
    """A module for the architecture in a folder of its own, flags, and a version alone for the whole."""
    write(folder / "modules.json", [module("RoBERTa", "0_RoBERTa"), module("Pooling", "1_Pooling")])
    write(folder / "config.json", {"__version__": "0.2.5"})
    shutil.copytree(source, folder / "0_RoBERTa")
    write(folder / "0_RoBERTa" / "sentence_roberta_config.json", {"max_seq_length": 9, "do_lower_case": True})
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode_max_tokens": True})


def second_generation(source, folder):
    """A transformer in ``0_Transformer/``, several flags, dense weights in a pickle of tensors, a dropout."""
    parts = [("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dropout", "3_Dropout")]
    write(folder / "modules.json", [module(*part) for part in parts])
    write(folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "2.0.0"}})
    shutil.copytree(source, folder / "0_Transformer")
    write(folder / "0_Transformer" / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": True})
    flags = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **flags})
    tanh = "torch.nn.modules.activation.Tanh"
    dense = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": tanh}
    write(folder / "2_Dense" / "config.json", dense)
    torch.manual_seed(2)
    state = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    torch.save(state, folder / "2_Dense" / "pytorch_model.bin")
    write(folder / "3_Dropout" / "config.json", {"dropout": 0.5})


def newest_generation(source, folder):
    """Packages with other names, one name of the pooling, the limit where the tokenizer is."""
    shutil.copytree(source, folder)
    base, own = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules"
    kinds = [
        module("Transformer", "", f"{base}.transformer"),
        module("Pooling", "1_Pooling", f"{own}.pooling"),
        module("Normalize", "2_Normalize", f"{base}.normalize"),
    ]
    write(folder / "modules.json", kinds)
    write(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
    )
    write(folder / "1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": "lasttoken"})
    write(folder / "2_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", tokenizer | {"model_max_length": 9})


@pytest.mark.parametrize("generation", [first_generation, second_generation, newest_generation])
def test_every_generation_opens(library, plain, tmp_path, generation):
    generation(plain["roberta"], tmp_path / "old")
    if generation is first_generation:  # whose names the library itself has forgotten
        shutil.copytree(tmp_path / "old", tmp_path / "today")
        modules = [module("Transformer", "0_RoBERTa"), module("Pooling", "1_Pooling")]
        write(tmp_path / "today" / "modules.json", modules)
    model = theirs(library, tmp_path / ("today" if generation is first_generation else "old"))
    encoder = mmcl.load(tmp_path / "old", dtype="float32")
    assert encoder.embedder("text").processor.max_tokens == model.max_seq_length == 9
    same(encoder.encode(TEXTS), unit(model.encode(TEXTS)))


def test_a_plain_language_model_tells_of_a_text_in_its_last_state(library, plain, tmp_path):
    net = transformers.Qwen2ForCausalLM(transformers.AutoConfig.from_pretrained(plain["qwen2"]))
    shutil.copytree(plain["qwen2"], tmp_path / "plain")
    net.save_pretrained(tmp_path / "plain")
    encoder = mmcl.load(tmp_path / "plain", dtype="float32")
    assert encoder.embedder("text").tower.pooling == "last"
    texts = TEXTS[:3]
    same(encoder.encode(texts), unit(theirs(library, tmp_path / "plain").encode(texts)))


@pytest.fixture
def folder(plain, tmp_path):
    """A good folder, with a dense layer, for the tests to break."""
    made_here(plain["bert"], "mean", [Dense(8)]).save(tmp_path / "model")
    (tmp_path / "model" / "mmcl.json").unlink()
    return tmp_path / "model"


def refusal(folder):
    with pytest.raises(MmclError) as caught:
        mmcl.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sentence_transformers.models.LayerNorm", "its module 'LayerNorm' is not supported"),
        ("sentence_transformers.models.WordEmbeddings", "its module 'WordEmbeddings' is not supported"),
        ("sentence_transformers.models.StaticEmbedding", "its module 'StaticEmbedding' is not supported"),
        ("sentence_transformers.models.CLIPModel", "its module 'CLIPModel' is not supported"),
        ("custom_code.Dense", "'custom_code.Dense' is code of its own"),
        ("sentence_transformers.models.Pooling", "its modules are Transformer, Pooling, Pooling"),
    ],
)
def test_modules_that_cannot_be_read_are_named(folder, kind, message):
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = kind
    write(folder / "modules.json", modules)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("modules.json", None, "not a list of modules"),
        ("2_Dense/config.json", {"in_features": 12}, "reads 12 features, but the pooling gives 16"),
        ("2_Dense/config.json", {"out_features": 9}, "bias 8, weight 8×16, but its config.json describes bias 9"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "activation 'os.system' is not supported"),
        ("2_Dense/config.json", {"use_residual": True}, "residual"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "works on 'token_embeddings'"),
        ("2_Dense/config.json", {"in_features": "many"}, "damaged"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pooling 'attention' is not supported"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
        ("config_sentence_transformers.json", {"default_prompt_name": "nobody"}, "default prompt 'nobody'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "does fill-mask"),
        ("config.json", {"vocab_size": 7}, ""),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_reason(folder, file, change, message):
    values = json.loads((folder / file).read_text())
    write(folder / file, {} if change is None else values | change)
    assert message in refusal(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    def without(*names):
        copy = tmp_path / f"without_{names[0].replace('/', '_')}"
        shutil.copytree(folder, copy)
        for name in names:
            (copy / name).unlink()
        return refusal(copy)

    assert "tokenizer" in without("tokenizer.json")
    assert "tokenizer" in without("tokenizer_config.json", "tokenizer.json")
    assert "model.safetensors" in without("model.safetensors")
    assert "weights are missing" in without("2_Dense/model.safetensors")
    assert "config.json" in without("config.json")
    for name in ("1_Pooling/config.json", "2_Dense/config.json"):
        assert f"{name}: is missing, but modules.json lists its folder" in without(name)


@pytest.mark.parametrize(("place", "name"), [(0, "0_Transformer"), (1, "1_Pooling"), (2, "2_Dense")])
def test_a_listed_folder_that_is_not_there_is_named(folder, place, name):
    modules = json.loads((folder / "modules.json").read_text())
    modules[place]["path"] = name
    write(folder / "modules.json", modules)
    shutil.rmtree(folder / name, ignore_errors=True)
    assert str(folder / name) in refusal(folder)


def test_a_normalisation_needs_no_folder(folder):
    """Which is empty, and lost where folders are kept by their files alone."""
    shutil.rmtree(folder / "3_Normalize")
    assert mmcl.load(folder).dim == 8


def test_paths_stay_within_the_folder_and_pickles_hold_tensors_alone(folder):
    modules = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [modules[0] | {"path": "../elsewhere"}, *modules[1:]])
    assert "leads out of the folder" in refusal(folder)
    write(folder / "modules.json", modules)
    (folder / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": Path("anything but a tensor")}, folder / "2_Dense" / "pytorch_model.bin")
    assert "never unpickled" in refusal(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    train_tokenizer([*CORPUS, "zebras vex quick jumping foxes"], TokenizerConfig(vocab_size=90), 20).save_pretrained(
        folder
    )
    assert "do not belong together" in refusal(folder)


def test_what_a_folder_asks_for_that_encode_has_to_be_given_is_said(folder, caplog):
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    write(folder / "config_sentence_transformers.json", settings | {"similarity_fn_name": "dot"})
    modules = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", modules[:-1])
    mmcl.load(folder)
    assert "compared by dot: encode(normalize=False)" in caplog.text


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dense", [(), DENSE])
def test_their_very_vectors_outlive_a_round_trip(library, plain, tmp_path, normalize, dense):
    """Their lengths too: a folder without a normalisation gains none, whether by our own description or by theirs."""
    options = {"normalize": normalize, "dense": dense, "similarity_fn_name": "dot"}
    model = made_by_them(library, plain["bert"], "mean", **options)
    expected = model.encode(TEXTS)
    model.save(str(tmp_path / "theirs"))
    mmcl.load(tmp_path / "theirs", dtype="float32").save(tmp_path / "once")
    encoder = mmcl.load(tmp_path / "once", dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS, normalize=normalize), expected, atol=1e-5)
    encoder.save(tmp_path / "twice")
    (tmp_path / "twice" / "mmcl.json").unlink()
    mmcl.load(tmp_path / "twice", dtype="float32").save(tmp_path / "thrice")
    for name in ("once", "twice", "thrice"):
        again = theirs(library, tmp_path / name)
        np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-5)
        assert again.similarity_fn_name == "dot"
        modules = json.loads((tmp_path / name / "modules.json").read_text())
        assert [module["type"].endswith(".Normalize") for module in modules].count(True) == normalize


def test_a_plain_transformer_stays_without_a_normalisation(library, plain, tmp_path):
    expected = theirs(library, plain["bert"]).encode(TEXTS[:3])
    mmcl.load(plain["bert"], dtype="float32").save(tmp_path / "ours")
    np.testing.assert_allclose(theirs(library, tmp_path / "ours").encode(TEXTS[:3]), expected, atol=1e-5)


def test_older_folders_of_ours_have_unit_vectors(library, plain, tmp_path):
    """Whose descriptions say nothing of it, as all were written with a normalisation."""
    made_here(plain["bert"], "mean").save(tmp_path / "ours")
    description = json.loads((tmp_path / "ours" / "mmcl.json").read_text())
    del description["conventions"]
    write(tmp_path / "ours" / "mmcl.json", description)
    mmcl.load(tmp_path / "ours").save(tmp_path / "again")
    np.testing.assert_allclose(np.linalg.norm(theirs(library, tmp_path / "again").encode(TEXTS), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("dim", [5, 99])
def test_vectors_are_cut_where_the_folder_says(library, plain, tmp_path, dim):
    model = made_by_them(library, plain["bert"], "mean", normalize=False, truncate_dim=dim)
    model.save(str(tmp_path / "theirs"))
    expected = theirs(library, tmp_path / "theirs").encode(TEXTS)
    assert expected.shape[1] == min(dim, 16)
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    encoder.save(tmp_path / "ours")
    for opened in (encoder, mmcl.load(tmp_path / "ours", dtype="float32")):
        assert (opened.dim, opened.width) == (min(dim, 16), 16)
        np.testing.assert_allclose(opened.encode(TEXTS, normalize=False), expected, atol=1e-5)
        same(opened.encode(TEXTS), unit(expected))
        same(opened.encode(TEXTS, truncate_dim=16), unit(model.encode(TEXTS, truncate_dim=16)))
        (part,) = opened.encode_stream(TEXTS)
        same(part, unit(expected))
    np.testing.assert_allclose(theirs(library, tmp_path / "ours").encode(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("dim", [0, -1, 2.5, "8", True])
def test_dimensions_that_nothing_can_be_cut_to_are_refused(folder, dim):
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    write(folder / "config_sentence_transformers.json", settings | {"truncate_dim": dim})
    assert f"truncate_dim is {dim!r}" in refusal(folder)

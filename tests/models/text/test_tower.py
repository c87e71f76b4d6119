"""Text towers around several architectures: padding, poolings, prompts, what is saved, odd texts, broken folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmcl.config.data import ImageConfig
from mmcl.config.model import ModelConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.formats.start import start_from
from mmcl.formats.tokenizers import save_tokenizer
from mmcl.formats.towers.text import build_text_tower, describe_text_tower, open_text_tower, rebuild_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.pooling import POOLINGS
from mmcl.models.text.tower import TextTower
from mmcl.runtime.errors import MmclError

WORDS = [f"{a} {b}" for a in ("red", "green", "blue", "small") for b in ("shoe", "shirt", "watch", "bag")]
TEXTS = ["red shoe", "a small green bag and a blue watch", "Blue SHIRT", "", "shoe"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
DECODER = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 40}
NETS = {
    "bert": lambda **given: transformers.BertModel(transformers.BertConfig(**SIZES, **given)),
    "roberta": lambda **given: transformers.RobertaModel(transformers.RobertaConfig(**SIZES, **given)),
    "mpnet": lambda **given: transformers.MPNetModel(transformers.MPNetConfig(**SIZES, **given)),
    "distilbert": lambda **given: transformers.DistilBertModel(
        transformers.DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=48, **given)
    ),
    "qwen2": lambda **given: transformers.Qwen2Model(transformers.Qwen2Config(**DECODER, **given)),
    "llama": lambda **given: transformers.LlamaModel(transformers.LlamaConfig(**DECODER, **given)),
}
QUERY, PASSAGE = "query: ", "the small passage: "


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*WORDS, QUERY, PASSAGE] * 5, TokenizerConfig(vocab_size=70, lowercase=False), 32)


def make(name, tokenizer, pooling="mean", **settings):
    """An embedder whose vectors are the tower's features."""
    torch.manual_seed(0)
    net = NETS[name](vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    processor = TextProcessor(tokenizer, max_tokens=30, **settings)
    return alone(processor, TextTower(net, processor, pooling=pooling))


def alone(processor, tower):
    return TextEmbedder(processor, tower, Head.from_layers(tower.width, [])).eval()


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A BERT as transformers saves it."""
    make("bert", tokenizer).tower.net.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def embed(embedder, texts, prompt=None):
    processor = embedder.processor
    return embedder.tower(**processor.collate(processor.tokenize(texts, prompt)[0]))


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_text_alone_without_a_mask_has_the_vector_of_a_padded_batch(name, tokenizer):
    made = make(name, tokenizer)
    processor, tower = made.processor, made.tower
    for pooling in POOLINGS:
        tower.set_pooling(pooling)
        alone = torch.cat([tower(torch.from_numpy(ids)[None].long()) for ids in processor.tokenize(TEXTS)[0]])
        torch.testing.assert_close(embed(made, TEXTS), alone, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
@torch.no_grad()
def test_decoders_padded_on_the_right_equal_themselves_padded_on_the_left(name, tokenizer):
    made = make(name, tokenizer, "last")
    processor, tower = made.processor, made.tower
    inputs = processor.collate(processor.tokenize(TEXTS)[0])
    mask = inputs["attention_mask"].flip(1)
    ids = torch.zeros_like(inputs["input_ids"])
    ids[mask.bool()] = inputs["input_ids"][inputs["attention_mask"].bool()]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    states = tower.net(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    torch.testing.assert_close(tower(**inputs), states[:, -1], rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_two_layers_and_the_pooler_are_those_of_the_model(tokenizer):
    made = make("bert", tokenizer)
    processor, tower = made.processor, made.tower
    inputs = processor.collate(processor.tokenize(TEXTS)[0])
    output = tower.net(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].unsqueeze(-1)
    hidden = output.hidden_states
    for pooling, states in (("first_last", hidden[1] + hidden[3]), ("last_two", hidden[2] + hidden[3])):
        tower.set_pooling(pooling)
        torch.testing.assert_close(tower(**inputs), (states / 2 * mask).sum(1) / mask.sum(1))
    tower.set_pooling("pooler")
    torch.testing.assert_close(tower(**inputs), output.pooler_output)
    torch.testing.assert_close(tower.states(**inputs), output.last_hidden_state)
    assert tower.word_embeddings is tower.net.embeddings.word_embeddings
    tower.set_pooling("cls+max")
    assert tower(**inputs).shape == (len(TEXTS), tower.width) == (len(TEXTS), 64)


def test_a_pooler_learns_only_where_it_is_used(tokenizer):
    tower = make("bert", tokenizer).tower
    for pooling, learns in (("mean", False), ("pooler", True), ("cls", False)):
        tower.set_pooling(pooling)
        assert tower.net.pooler.dense.weight.requires_grad == learns
    with pytest.raises(MmclError, match="has no pooler"):
        make("qwen2", tokenizer, "pooler")


def test_prompts_stand_before_the_texts(tokenizer):
    made = make("bert", tokenizer, prompts={"query": QUERY, "passage": PASSAGE}, default_prompt="passage")
    processor = made.processor
    bare = make("bert", tokenizer)
    for prompt, words in ((None, PASSAGE), ("passage", PASSAGE), ("query", QUERY), ("", "")):
        torch.testing.assert_close(embed(made, TEXTS, prompt), embed(bare, [words + text for text in TEXTS]))
    with pytest.raises(MmclError, match=r"no prompt of that name; it has: passage, query"):
        processor.tokenize(TEXTS, "document")
    with pytest.raises(MmclError, match="none of the prompts"):
        processor.set_prompts({"query": QUERY}, "passage")
    processor.replace_prompts({"passage": QUERY})
    assert processor.default_prompt == "passage"
    processor.replace_prompts({"query": QUERY})
    assert processor.default_prompt is None


@torch.no_grad()
def test_prompts_may_be_left_out_of_the_pooling(tokenizer):
    made = make("bert", tokenizer, prompts={"query": QUERY}, include_prompt=False)
    processor, tower = made.processor, made.tower
    assert processor.skipped() == processor.skipped("") == 0
    count = processor.skipped("query")
    ids = processor.tokenize(["red shoe"], "query")[0][0]
    assert count == len(ids) - len(processor.tokenize(["red shoe"])[0][0]) + 1 > 1  # the start token counts as well
    states = tower.states(torch.from_numpy(ids)[None].long())
    for mask in (None, torch.ones(1, len(ids), dtype=torch.int64)):
        pooled = tower(torch.from_numpy(ids)[None].long(), mask, torch.tensor([count]))
        torch.testing.assert_close(pooled, states[:, count:].mean(1))
    assert make("bert", tokenizer, prompts={"query": QUERY}).processor.skipped("query") == 0


@pytest.mark.parametrize("include", [True, False])
def test_prompts_and_lower_casing_equal_sentence_transformers(tokenizer, tmp_path, include):
    library = pytest.importorskip("sentence_transformers")
    make("roberta", tokenizer).tower.net.save_pretrained(tmp_path / "net")
    tokenizer.save_pretrained(tmp_path / "net")
    modules = library.sentence_transformer.modules
    transformer = modules.Transformer(str(tmp_path / "net"), max_seq_length=20, do_lower_case=True)
    pooling = modules.Pooling(32, "mean", include_prompt=include)
    theirs = library.SentenceTransformer(
        modules=[transformer, pooling], prompts={"query": QUERY}, default_prompt_name="query", device="cpu"
    )
    theirs.save_pretrained(str(tmp_path / "saved"))
    config = tmp_path / "saved" / "sentence_bert_config.json"
    config.write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    processor, tower = open_text_tower(str(tmp_path / "saved"))
    assert (processor.lowercase, processor.include_prompt, processor.default_prompt, processor.max_tokens) == (
        True, include, "query", 20,
    )  # fmt: skip
    texts = [*TEXTS[:3], "shoe"]
    inputs = processor.collate(processor.tokenize(texts)[0])
    skipped = {} if include else {"skipped": torch.full((len(texts),), processor.skipped())}
    with torch.no_grad():
        ours = tower.eval()(**inputs, **skipped)
    np.testing.assert_allclose(ours.numpy(), theirs.encode(texts), rtol=1e-4, atol=1e-6)


def test_lower_casing_is_saved_once(tokenizer, tmp_path):
    import copy

    made = make("bert", copy.deepcopy(tokenizer), lowercase=True)
    processor, tower = made.processor, made.tower
    assert processor.key() != make("bert", tokenizer).processor.key()
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
        save_tokenizer(processor.tokenizer, tmp_path / name)
        again, rebuilt = rebuild_text_tower(describe_text_tower(processor, tower), tmp_path, tmp_path / name)
        assert again.lowercase
        assert again.key() == processor.key()
        assert again.tokenize(["RED Shoe"])[0][0].tolist() == tokenizer("red shoe")["input_ids"]
        processor, tower = again, rebuilt


def test_a_tower_is_rebuilt_from_its_spec(tokenizer, tmp_path):
    settings = {"prompts": {"query": QUERY}, "default_prompt": "query", "include_prompt": False, "lowercase": False}
    made = make("roberta", tokenizer, "cls+weighted_mean", **settings)
    processor, tower = made.processor, made.tower
    save_tokenizer(processor.tokenizer, tmp_path)
    spec = describe_text_tower(processor, tower)
    again = alone(*rebuild_text_tower(json.loads(json.dumps(spec)), tmp_path, tmp_path))
    again.tower.load_state_dict(tower.state_dict())
    torch.testing.assert_close(embed(again, TEXTS), embed(made, TEXTS))
    assert describe_text_tower(again.processor, again.tower) == spec
    assert again.processor.key() == processor.key()


@pytest.mark.parametrize("pooling", ["pooled", "mean"])
def test_specs_of_older_versions_are_read(tokenizer, tmp_path, pooling):
    made = make("bert", tokenizer, pooling)
    processor, tower = made.processor, made.tower
    save_tokenizer(processor.tokenizer, tmp_path)
    kept = ("config", "pooling", "max_tokens", "prompts")
    spec = {key: value for key, value in describe_text_tower(processor, tower).items() if key in kept}
    again = alone(*rebuild_text_tower(spec, tmp_path, tmp_path))
    again.tower.load_state_dict(tower.state_dict())
    torch.testing.assert_close(embed(again, TEXTS), embed(made, TEXTS))


STRANGE = ["", " ", "\n\t \u3000", "\ud800", "a\udfffb", "\0", "\u200b" * 3, "😀" * 50, "<s> </s> <pad>", "[MASK]"]


@pytest.mark.parametrize("name", ["bert", "qwen2"])
def test_texts_of_any_content_have_finite_vectors(name, tokenizer):
    for pooling in ("mean", "max", "last", "weighted_mean"):
        made = make(name, tokenizer, pooling)
        assert torch.isfinite(embed(made, STRANGE)).all()
    assert made.processor.tokenize([]) == ([], 0)


def test_a_text_without_any_token_reads_as_padding():
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "red": 2, "shoe": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    made = make("llama", plain, "last")
    assert [row.tolist() for row in made.processor.tokenize(["", "red", "  "])[0]] == [[0], [2], [0]]
    vectors = embed(made, ["", "red shoe", "  "])
    torch.testing.assert_close(vectors[0], vectors[2])
    assert torch.isfinite(vectors).all()


def spoil(folder, how):
    if how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "no tokenizer at all":
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
    elif how == "half a tokenizer":
        path = folder / "tokenizer.json"
        path.write_text(path.read_text()[:500])
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "half the weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "fewer weights":
        state = load_file(folder / "model.safetensors")
        save_file({key: value for key, value in state.items() if "layer.1" not in key}, folder / "model.safetensors")
    elif how == "a larger tokenizer":
        larger = transformers.AutoTokenizer.from_pretrained(folder)
        larger.add_tokens([f"word{i}" for i in range(100)])
        larger.save_pretrained(folder)
    elif how == "another vocabulary":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 40}))
    elif how == "no config":
        (folder / "config.json").write_text("{")
    elif how == "odd config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no tokenizer", "the tokenizer's files are missing"),
        ("no tokenizer at all", "the tokenizer's files are missing"),
        ("half a tokenizer", "the tokenizer's files are missing or damaged"),
        ("no weights", "the weights are missing"),
        ("half the weights", "the weights are damaged"),
        ("fewer weights", r"its weights lack 16 tensors, such as 'encoder\.layer\.1\."),
        ("a larger tokenizer", "entries but the model only .*; they do not belong together"),
        ("another vocabulary", "cannot be opened"),
        ("no config", "damaged"),
        ("odd config", "cannot be opened"),
    ],
)
def test_broken_folders_are_reported_in_one_line(folder, how, message):
    spoil(folder, how)
    with pytest.raises(MmclError, match=message) as caught:
        open_text_tower(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", [False, True])
def test_a_tokenizer_that_leaves_much_of_the_table_unused_is_said(folder, tokenizer, caplog, said):
    """Padded tables are common; a tokenizer of some other model would give vectors all the same."""
    rows = int(len(tokenizer) / 0.9) + said
    net = transformers.AutoModel.from_pretrained(folder)
    net.resize_token_embeddings(rows)
    net.save_pretrained(folder)
    open_text_tower(str(folder))
    found = f"the tokenizer has {len(tokenizer)} entries but the model {rows}; check that they belong together"
    assert (found in caplog.text) == said
    assert ("belong together" in caplog.text) == said


def test_weights_without_a_pooler_are_complete_but_say_so(folder, caplog):
    state = load_file(folder / "model.safetensors")
    state = {key: value for key, value in state.items() if "pooler" not in key}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    open_text_tower(str(folder))
    assert not caplog.records
    assert open_text_tower(str(folder), pooling="pooler")[1].pooling == "pooler"
    assert "no pooler" in caplog.text


def test_configs_set_pooling_and_prompts(folder, tokenizer):
    section = {"name": str(folder), "pooling": "cls_before_pooler", "prompts": {"query": QUERY}}
    processor, tower = build_text_tower(TextTowerConfig(**section))
    assert (tower.pooling, processor.prompts) == ("cls", {"query": QUERY})
    section.pop("name")
    started = start_from(ModelConfig(name=str(folder), text=section), ImageConfig(), {"text": "text"})
    assert (started.text().tower.pooling, started.text().processor.prompts) == ("cls", {"query": QUERY})
    scratch = TextTowerConfig(layers=1, width=32, heads=2, max_tokens=16, pooling="pooler", prompts={"query": QUERY})
    processor, tower = build_text_tower(scratch, tokenizer)
    assert (tower.pooling, processor.prompts, len(tower.net.encoder.layer)) == ("pooler", {"query": QUERY}, 1)


@pytest.mark.parametrize("name", NETS)
def test_embeddings_looked_up_at_once_change_no_vector_and_no_gradient(name, tokenizer):
    made = make(name, tokenizer)
    processor, tower = made.processor, made.tower
    inputs = processor.collate(processor.tokenize(TEXTS)[0])
    weights = torch.randn(len(TEXTS), tower.width)
    plain = tower(**inputs)
    (plain * weights).sum().backward()
    wanted = tower.word_embeddings.weight.grad.clone()
    tower.zero_grad()
    embeddings = tower.embed_tokens([inputs["input_ids"][:2], inputs["input_ids"][2:]])
    parts = [
        tower(inputs["input_ids"][rows], inputs["attention_mask"][rows], embeddings=embedded)
        for rows, embedded in zip((slice(0, 2), slice(2, None)), embeddings, strict=True)
    ]
    together = torch.cat(parts)
    torch.testing.assert_close(together, plain, rtol=1e-5, atol=2e-6)
    (together * weights).sum().backward()
    torch.testing.assert_close(tower.word_embeddings.weight.grad, wanted, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert tower.embed_tokens([inputs["input_ids"]]) is None


def test_a_limit_that_leaves_nothing_of_a_text_is_refused(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 2}))
    with pytest.raises(MmclError, match="texts are cut at 2 tokens, of which 2 are special"):
        open_text_tower(str(folder))

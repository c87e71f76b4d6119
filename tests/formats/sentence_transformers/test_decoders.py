"""Embedding models made of decoders (Qwen3-Embedding, E5-Mistral), tiny, against sentence-transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import mmcl
from mmcl.training import train

from .made import CORPUS, SMALL, TEXTS, assert_same, byte_pairs, theirs, unit, write

DECODERS = {
    "Qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "Llama": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 6},
    "Gemma3Text": {"num_key_value_heads": 1, "head_dim": 8, "use_bidirectional_attention": True},
}
INSTRUCTION = "Instruct: Given a red dog, retrieve a big one\nQuery:"
LONG = [*TEXTS, "a blue dog and a small red one " * 2]


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers")


def decoder(folder, kind, *, causal_lm=False, padding_side="left"):
    """A folder of transformers with a tiny random decoder, whose tokenizer puts an end token behind every text."""
    tokenizer = byte_pairs()
    tokenizer.padding_side = padding_side
    config = getattr(transformers, f"{kind}Config")(
        **{**SMALL, **DECODERS[kind]}, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    net = getattr(transformers, f"{kind}{'ForCausalLM' if causal_lm else 'Model'}")(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def embedding_model(folder, kind, **settings):
    """The same as Qwen3-Embedding is published: the last token, unit length, an instruction before queries."""
    decoder(folder, kind, **settings)
    package = "sentence_transformers.models"
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"{package}.{kind}"}
        for place, (path, kind) in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode_lasttoken": True})
    prompts = {"query": INSTRUCTION, "document": ""}
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write(folder / "config_sentence_transformers.json", settings)
    return folder


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", DECODERS)
def test_the_last_token_of_a_decoder_is_read_whatever_stands_beside_the_text(library, tmp_path, kind, padding_side):
    folder = embedding_model(tmp_path / "theirs", kind, padding_side=padding_side)
    model = theirs(library, folder)
    encoder = mmcl.load(folder, device="cpu", dtype="float32")
    processor = encoder.embedder("text").processor
    assert all(ids[-1] == processor.tokenizer.eos_token_id for ids in processor.tokenize(LONG)[0])
    for prompt in ("query", "document", None):
        alone = np.concatenate([model.encode([text], prompt_name=prompt) for text in LONG])
        assert_same(encoder.encode(LONG, prompt=prompt), alone)
        assert_same(encoder.encode(LONG[::-1], prompt=prompt, batch_size=2)[::-1], alone)
        with torch.no_grad():  # as a batch is in training: all of it padded to the longest
            embedder = encoder.embedder("text")
            embedder.in_groups = False
            inputs = processor.collate(processor.tokenize(LONG, prompt)[0])
            assert_same(unit(embedder(**inputs).numpy()), alone)
            embedder.in_groups = True
    assert not np.allclose(encoder.encode(LONG, prompt="query"), encoder.encode(LONG), atol=1e-3)
    encoder.save(tmp_path / "ours")
    again = mmcl.load(tmp_path / "ours", device="cpu", dtype="float32")
    np.testing.assert_array_equal(again.encode(LONG, prompt="query"), encoder.encode(LONG, prompt="query"))
    expected = model.encode(LONG, prompt_name="query")
    assert_same(theirs(library, tmp_path / "ours").encode(LONG, prompt_name="query"), expected)


@pytest.mark.parametrize("kind", ["Qwen3", "Mistral"])
def test_a_language_model_as_it_is_gives_its_last_state(library, tmp_path, kind):
    folder = decoder(tmp_path, kind, causal_lm=True)
    assert_same(mmcl.load(folder, dtype="float32").encode(TEXTS), unit(theirs(library, folder).encode(TEXTS)))


def test_weights_and_config_in_bfloat16_are_opened_in_float32(library, tmp_path):
    folder = embedding_model(tmp_path / "theirs", "Qwen3")
    transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    encoder = mmcl.load(folder, dtype="float32")
    expected = theirs(library, folder, model_kwargs={"dtype": torch.float32}).encode(TEXTS)
    assert_same(encoder.encode(TEXTS), expected)
    encoder.save(tmp_path / "ours")
    assert_same(mmcl.load(tmp_path / "ours", dtype="float32").encode(TEXTS), expected)


def test_a_decoder_is_trained_behind_its_instruction(tmp_path):
    folder = embedding_model(tmp_path / "start", "Qwen3")
    rows = [{"anchor": text, "positive": text.replace("a ", "the ")} for text in CORPUS] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "method": {"name": "simcse"},
        "data": {
            "train": {"source": str(tmp_path / "rows.jsonl")},
            "columns": {"anchor": "anchor", "positive": "positive"},
            "prompts": {"anchor": "query", "positive": "document"},
        },
        "model": {"dim": 16, "text": {"name": str(folder), "head": {"kind": "none"}}},
        "training": {"epochs": 1, "batch_size": 8, "lr": 1e-2, "precision": "float32", "device": "cpu"},
    }
    train(config, out=tmp_path / "run", show_progress=False)
    trained = mmcl.load(tmp_path / "run", dtype="float32")
    embedder = trained.embedder("text")
    assert (embedder.tower.pooling, embedder.processor.prompts["query"]) == ("last", INSTRUCTION)
    before = dict(mmcl.load(folder, dtype="float32").embedder("text").tower.named_parameters())
    still = [name for name, weight in embedder.tower.named_parameters() if torch.equal(weight, before[name])]
    assert not still

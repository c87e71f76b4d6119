"""Models of an encoder and a decoder, tiny, against sentence-transformers: which states are pooled, what is saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import mmcl
from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.train_tokenizer import VERY_LONG, train_tokenizer
from mmcl.runtime.errors import MmclError
from mmcl.training import train

WORDS = [f"{a} {b}" for a in ("red", "green", "blue", "small") for b in ("shoe", "shirt", "watch", "bag")]
TEXTS = ["red shoe", "a small green bag and a blue watch", "Blue SHIRT", "", "red shoe blue watch " * 3]
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
BART = {
    "d_model": 32,
    "max_position_embeddings": 64,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
}
KINDS = {
    "T5": (T5, "T5EncoderModel"),
    "MT5": (T5, "MT5EncoderModel"),
    "UMT5": (T5, "UMT5EncoderModel"),
    "LongT5": (T5, "LongT5EncoderModel"),
    "SwitchTransformers": (T5 | {"num_experts": 2, "expert_capacity": 64}, "SwitchTransformersEncoderModel"),
    "Bart": (BART, "BartModel"),
    "MBart": (BART, "MBartModel"),
    "PLBart": (BART, "PLBartModel"),
}
OFTEN = ("T5", "MT5", "Bart", "MBart")


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers")


def encoder_decoder(kind, folder, suffix="Model"):
    """A folder with all of a tiny random model of ``kind``, its decoder too."""
    tokenizer = train_tokenizer(WORDS * 5, TokenizerConfig(vocab_size=70), VERY_LONG)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": 3, "bos_token_id": 2, "decoder_start_token_id": 3}
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind][0], **ids, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    net = getattr(transformers, f"{kind}{suffix}")(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def check_both_ways(library, model, folder, tmp_path):
    """What ``folder`` gives here, batched or not, and what is saved of it, here and there, is what ``model`` gives."""
    expected = np.concatenate([unit(model.encode([text])) for text in TEXTS])
    encoder = mmcl.load(folder, device="cpu", dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1], batch_size=2)[::-1], expected, atol=1e-5)
    encoder.save(tmp_path / "ours")
    again = mmcl.load(tmp_path / "ours", device="cpu", dtype="float32")
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    theirs = library.SentenceTransformer(str(tmp_path / "ours"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(unit(theirs.encode(TEXTS)), expected, atol=1e-5)
    return encoder


@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.slow]) for name in KINDS]
)
def test_a_plain_folder_pools_what_sentence_transformers_pools(library, tmp_path, kind):
    folder = encoder_decoder(kind, tmp_path / "theirs")
    model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    encoder = check_both_ways(library, model, folder, tmp_path)
    net = encoder.embedder("text").tower.net
    assert type(net).__name__ == type(model[0].auto_model).__name__ == KINDS[kind][1]
    assert any("decoder" in name for name, _ in net.named_parameters()) == ("Bart" in kind)


@pytest.mark.parametrize("kind", ["T5", "MT5"])
def test_a_folder_of_sentence_t5s_kind_is_followed(library, tmp_path, kind):
    """Transformer, mean, a dense layer without bias or activation, and a normalisation."""
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = encoder_decoder(kind, tmp_path / "plain", "ForConditionalGeneration")
    torch.manual_seed(1)
    dense = Dense(32, 12, bias=False, activation_function=torch.nn.Identity())
    modules = [Transformer(str(folder), max_seq_length=12), Pooling(32, "mean"), dense, Normalize()]
    library.SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "theirs"))
    model = library.SentenceTransformer(str(tmp_path / "theirs"), device="cpu", local_files_only=True)
    assert check_both_ways(library, model, tmp_path / "theirs", tmp_path).dim == 12


@pytest.mark.parametrize("kind", ["T5", "Bart"])
def test_both_are_trained(tmp_path, kind):
    folder = encoder_decoder(kind, tmp_path / "start")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
    config = {
        "method": {"name": "simcse"},
        "data": {"train": {"source": str(tmp_path / "rows.jsonl")}},
        "model": {"dim": 8, "text": {"name": str(folder)}},
        "training": {"epochs": 1, "batch_size": 8, "lr": 1e-2, "precision": "float32", "device": "cpu"},
    }
    train(config, out=tmp_path / "run", show_progress=False)
    before = mmcl.load(folder, dtype="float32").embedder("text").tower.net.state_dict()
    after = mmcl.load(tmp_path / "run", dtype="float32").embedder("text").tower.net.state_dict()
    assert before.keys() == after.keys()
    still = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
    assert not still


def test_the_middle_layers_of_a_decoder_are_pooled_too(tmp_path):
    encoder = mmcl.load(encoder_decoder("Bart", tmp_path), dtype="float32")
    tower, processor = encoder.embedder("text").tower, encoder.embedder("text").processor
    tower.set_pooling("last_two")
    tokens, _ = processor.tokenize(["small red bag"])
    ids = torch.from_numpy(tokens[0]).long()[None]
    with torch.no_grad():
        layers = tower.net(ids, output_hidden_states=True).decoder_hidden_states
        expected = ((layers[-2] + layers[-1]) / 2).mean(dim=1)
        torch.testing.assert_close(tower(ids), expected)


def test_other_models_with_a_decoder_are_refused_by_what_they_are(tmp_path):
    encoder_decoder("T5", tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"model_type": "m2m_100"}))
    with pytest.raises(MmclError, match=r"a 'm2m_100' model has a decoder, .* of such models t5, mt5") as caught:
        mmcl.load(tmp_path)
    assert "\n" not in str(caught.value)

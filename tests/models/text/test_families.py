"""Every text network of transformers, tiny: its own states, texts that do not depend on each other, what is saved.

A few run always: those whose weights transformers writes under other names, that mix padding in, or that know no limit.
Of the rest, over five hundred, every eighth is slow, and all are the survey.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import mmcl
from mmcl.config.model import TokenizerConfig
from mmcl.data.batches.inputs import text_inputs
from mmcl.data.processors.train_tokenizer import VERY_LONG, train_tokenizer
from mmcl.models.text.limits import UNLIMITED, count_positions, tightest
from mmcl.runtime.errors import MmclError

OFTEN = ["nomic_bert", "jina_embeddings_v3", "esm", "mixtral", "fnet", "convbert", "funnel", "xlnet"]
WORDS = [f"{a} {b}" for a in ("red", "green", "blue", "small") for b in ("shoe", "shirt", "watch", "bag")]
TEXTS = ["red shoe", "a small green bag and a blue watch", "Blue SHIRT", "", "shoe", "red shoe blue watch " * 3]
# By every name that some config has for it.
SMALL = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim", "d_inner", "ffn_hidden_size"), 48
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "d_head", "rotary_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 64),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "block_sizes": [1, 1],
}
UNSETTABLE = {"xlnet": ["max_position_embeddings"], "funnel": ["num_hidden_layers"]}


def how_often(place, family):
    """The marks of a family's test."""
    if family in OFTEN:
        return []
    return [pytest.mark.survey] if place % 8 else [pytest.mark.slow, pytest.mark.survey]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(WORDS * 5, TokenizerConfig(vocab_size=70, lowercase=False), VERY_LONG)


def tiny_net(family, tokenizer):
    """A network of ``family`` with weights at random, norms and biases too; None where it is none for texts alone."""
    kind = transformers.CONFIG_MAPPING[family]
    base = kind()
    if getattr(base, "is_encoder_decoder", False) or not hasattr(base, "vocab_size"):
        return None
    aliases = getattr(kind, "attribute_map", {})
    settings = {name: value for name, value in SMALL.items() if getattr(base, name, None) is not None}
    settings = {name: value for name, value in settings.items() if aliases.get(name) not in settings}
    for name in UNSETTABLE.get(family, []):
        del settings[name]
    config = kind(**settings, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, architectures=[])
    torch.manual_seed(0)
    net = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.is_floating_point():
                weight.add_(0.02 * torch.randn_like(weight))
    return net


@torch.no_grad()
def own_vector(net, tokenizer, text):
    """The mean of the library's own states of one text, of unit length."""
    ids = torch.tensor(tokenizer([text])["input_ids"])
    count = ids.shape[1]
    if net.config.model_type == "funnel" and count < 3:  # which fails on fewer, at this number of blocks
        ids = torch.nn.functional.pad(ids, (0, 3 - count), value=tokenizer.pad_token_id)
    states = net(ids, attention_mask=(torch.arange(ids.shape[1]) < count)[None].long()).last_hidden_state[:, :count]
    return torch.nn.functional.normalize(states.mean(dim=1), dim=1)[0].numpy()


@torch.no_grad()
def trained_together(encoder):
    """Vectors as a batch of all texts has them in training, but for dropout."""
    embedder = encoder.embedder("text")
    inputs = text_inputs(embedder.processor, embedder.processor.tokenize(TEXTS)[0], 0)
    return torch.nn.functional.normalize(embedder(**inputs), dim=1).numpy()


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=how_often(place, name)) for place, name in enumerate(MODEL_MAPPING_NAMES)],
)
def test_a_family_equals_the_library_text_by_text_and_survives_being_saved(family, tokenizer, tmp_path):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    theirs = tmp_path / "theirs"
    try:
        if (net := tiny_net(family, tokenizer)) is None:
            raise TypeError("it is none for texts alone")
        net.save_pretrained(theirs)
        tokenizer.save_pretrained(theirs)
        net = transformers.AutoModel.from_pretrained(theirs)
        expected = np.stack([own_vector(net, tokenizer, text) for text in TEXTS])
    except Exception as error:
        if family in OFTEN:
            raise
        pytest.skip(f"no tiny network of it runs: {error}")
    encoder = mmcl.load(theirs, device="cpu", dtype="float32")
    assert encoder.embedder("text").processor.max_tokens >= 61
    vectors = encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1], batch_size=4)[::-1], expected, atol=1e-5)
    np.testing.assert_allclose(trained_together(encoder), expected, atol=1e-5)
    reopened = mmcl.load(encoder.save(tmp_path / "ours"), device="cpu", dtype="float32")
    np.testing.assert_array_equal(reopened.encode(TEXTS), vectors)


@pytest.mark.slow
def test_worker_processes_open_what_transformers_writes_under_other_names(tokenizer, tmp_path):
    tiny_net("nomic_bert", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = mmcl.load(tmp_path, device="cpu", dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS, devices=2), encoder.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    "family", ["dpr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("beit", "wav2vec2"))]
)
def test_a_network_that_gives_no_states_for_texts_alone_is_refused_when_it_is_opened(family, tokenizer, tmp_path):
    tiny_net(family, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MmclError, match="gives no features for texts alone"):
        mmcl.load(tmp_path)


@pytest.mark.parametrize("limit", [-1, 0, 1, None, 1e30, float("inf"), float("nan"), True])
def test_a_limit_below_two_is_none(limit):
    net = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=limit))
    assert count_positions(net) == UNLIMITED
    assert tightest(limit, 512) == tightest(512.0, UNLIMITED, limit) == 512

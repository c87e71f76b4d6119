"""Packed computation against transformers' own forward, of one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from mmcl.models.text.packed import attention
from mmcl.models.text.packed.families import describe, described_with_dropout
from mmcl.models.text.packed.layout import lay_out, padded_length, padded_rows
from mmcl.models.text.packed.transformer import InferenceWeights, LiveWeights, PackedTransformer
from mmcl.runtime.device import multiplies_bfloat16

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 640,
    "pad_token_id": 1,
}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
FAMILIES = {
    "Bert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "Camembert": {},
    "MPNet": {},
    "DistilBert": DISTILBERT,
    "ModernBert": {"num_hidden_layers": 4, "local_attention": 8, "global_attn_every_n_layers": 3},
    "Llama": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 7, "head_dim": 8},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16},
}


def net(kind: str, **changed):
    torch.manual_seed(0)
    sizes = SIZES | FAMILIES[kind] | changed
    if kind == "DistilBert":
        sizes = {name: value for name, value in sizes.items() if name.split("_")[0] not in ("hidden", "num")} | changed
        sizes |= DISTILBERT
    if kind == "ModernBert":
        sizes |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases and gains start at 0 and 1, which would hide their loss
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def texts(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(2, 50, length).astype(np.int32) for length in lengths]


def packed(model, dtype=torch.float32):
    return PackedTransformer(model, InferenceWeights(dtype), dtype)


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_every_layer_equals_transformers_own(kind):
    model = net(kind)
    assert describe(model) is not None
    tokens = texts(300, 70, 17, 9, 9, 9, 3, 1)
    tokens[4][4] = 1  # a text may hold the padding token
    layers, runs = packed(model)(tokens, all_layers=True)
    assert runs == [(1, 300), (1, 70), (1, 17), (3, 9), (1, 3), (1, 1)]
    start = 0
    for ids in tokens:
        alone = model(torch.from_numpy(ids).long()[None], output_hidden_states=True).hidden_states
        assert len(alone) == len(layers)
        for ours, theirs in zip(layers, alone, strict=True):
            torch.testing.assert_close(ours[start : start + len(ids)], theirs[0], atol=1e-5, rtol=1e-5)
        start += len(ids)
    (last,), _ = packed(model)(tokens)
    assert torch.equal(last, layers[-1])


@pytest.mark.parametrize(("kind", "name"), [("Bert", "hidden_act"), ("Qwen3", "hidden_act")])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"])
@torch.no_grad()
def test_activations(kind, name, activation):
    model = net(kind, **{name: activation})
    (ids,) = texts(11)
    (ours,), _ = packed(model)([ids])
    theirs = model(torch.from_numpy(ids).long()[None]).last_hidden_state[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "MPNet", "ModernBert", "Qwen3"])
@torch.no_grad()
def test_bfloat16_is_close_and_leaves_the_weights_alone(kind):
    model = net(kind)
    (exact,), _ = packed(model)(texts(12, 12, 5))
    (rough,), _ = packed(model, torch.bfloat16)(texts(12, 12, 5))
    assert rough.dtype == torch.bfloat16
    assert torch.cosine_similarity(exact, rough.float()).min() > 0.999
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.skipif(not multiplies_bfloat16(torch.device("cpu")), reason="no bfloat16 products in this CPU")
@pytest.mark.parametrize("kind", ["Bert", "MPNet", "ModernBert", "Qwen3"])
@torch.no_grad()
def test_in_bfloat16_a_text_has_the_same_states_to_the_bit_whatever_stands_beside_it(kind):
    run = packed(net(kind), torch.bfloat16)
    tokens = texts(
        601, 580, 250, 190, 130, 120, *sorted(np.random.default_rng(1).integers(1, 90, 60).tolist(), reverse=True)
    )
    (together,), _ = run(tokens)
    (fewer,), _ = run(tokens[::2])
    start = 0
    parts = []
    for ids in tokens:
        (alone,), _ = run([ids])
        parts.append(together[start : start + len(ids)])
        assert torch.equal(alone, parts[-1])
        start += len(ids)
    assert torch.equal(fewer, torch.cat(parts[::2]))


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="torch's own attention is taken with AMX")
@pytest.mark.parametrize("kind", ["Bert", "MPNet", "ModernBert", "Qwen3"])
@torch.no_grad()
def test_torchs_own_attention_in_bfloat16_gives_what_products_of_all_heads_do(kind, monkeypatch):
    run = packed(net(kind), torch.bfloat16)
    tokens = texts(500, 200, 128, 120)
    (fused,), _ = run(tokens)
    monkeypatch.setattr(attention, "_AMX_BYTES_OF_SCORES", 1024)
    (batched,), _ = run(tokens)
    assert not torch.equal(fused, batched)
    assert torch.cosine_similarity(fused.float(), batched.float()).min() > 0.999


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradients_of_a_networks_own_weights_equal_transformers(kind):
    model = net(kind)
    tokens = texts(20, 9, 9, 2)
    weights = [weight for name, weight in model.named_parameters() if not name.startswith("pooler")]
    expected = 0
    for ids in tokens:
        expected = expected + model(torch.from_numpy(ids).long()[None]).last_hidden_state.sin().sum()
    (states,), _ = PackedTransformer(model, LiveWeights(torch.float32), torch.float32)(tokens)
    ours, theirs = (torch.autograd.grad(value, weights, allow_unused=True) for value in (states.sin().sum(), expected))
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_net_that_was_asked_for_all_its_states_once_still_packs():
    model = net("Bert")
    model(torch.tensor([[2, 3]]), output_hidden_states=True)  # transformers leaves hooks behind
    assert describe(model) is not None


def test_what_computes_something_else_is_not_packed():
    assert describe(net("Bert", is_decoder=True)) is None
    assert describe(net("Llama", is_causal=False)) is None
    assert describe(net("Bert", chunk_size_feed_forward=2)) is None
    long = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert describe(net("Llama", rope_parameters=long)) is None
    for kind, place in (("Bert", "encoder.layer.0.attention.self.query"), ("Qwen3", "layers.1.mlp.up_proj")):
        adapted = net(kind)
        parent, name = place.rsplit(".", 1)
        setattr(adapted.get_submodule(parent), name, type("Adapter", (nn.Linear,), {})(32, 32))
        assert describe(adapted) is None
        added = net(kind)
        added.get_submodule(parent).adapter = nn.Linear(32, 32)
        assert describe(added) is None
        hooked = net(kind)
        hooked.get_submodule(parent).register_forward_hook(lambda *_: None)
        assert describe(hooked) is None
    assert describe(transformers.GPT2Model(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2))) is None
    assert describe(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layout_holds_every_token_once_in_blocks_that_fit_the_caches(dtype):
    lengths = sorted(np.random.default_rng(0).integers(1, 400, 200).tolist(), reverse=True)
    layout = lay_out(lengths, 12, torch.device("cpu"), dtype)
    taken = torch.cat([block.gather[block.kept] for block in layout.blocks])
    assert torch.equal(taken, torch.arange(sum(lengths)))
    assert layout.tokens == sum(lengths) <= layout.rows < layout.tokens + 64
    assert layout.longest == lengths[0]
    for block in layout.blocks:
        assert block.texts == 1 or block.texts * block.length <= 512
    assert sum(int((~block.padding).any(1).sum()) for block in layout.blocks) == 200
    assert all(0 <= padded_length(length, dtype) - length < 64 for length in range(1, 600))


def test_products_are_of_few_shapes_whatever_the_texts_are():
    """oneDNN keeps what it prepared for each."""
    rows, blocks = set(), set()
    draw = np.random.default_rng(0)
    for _ in range(2000):
        lengths = np.sort(draw.integers(1, draw.integers(2, 64), draw.integers(1, 100)))[::-1].tolist()
        layout = lay_out(lengths, heads=12, device=torch.device("cpu"))
        rows.add(layout.rows)
        blocks |= {(block.texts, block.length) for block in layout.blocks}
    assert max(rows) > 2048
    assert len([count for count in rows if count <= 2048]) <= 44
    assert len(blocks) <= 32
    assert all(0 <= padded_rows(count) - count < max(16, count / 4) for count in range(1, 4096))
    assert all(padded_rows(count) - count <= count / 24 for count in range(1536, 4096))


def same_as_transformers_own(model, *lengths):
    """States and gradients of the live weights are those of transformers' forward, of one text at a time."""
    tokens = texts(*lengths)
    (states,), _ = PackedTransformer(model, LiveWeights(torch.float64), torch.float64)(tokens)
    upstream = torch.randn_like(states)
    states.backward(upstream)
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    start = 0
    for ids in tokens:
        part = slice(start, start + len(ids))
        alone = model(torch.from_numpy(ids).long()[None]).last_hidden_state[0]
        torch.testing.assert_close(states[part], alone, atol=1e-12, rtol=0)
        alone.backward(upstream[part])
        start = part.stop
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(gradients[name], weight.grad, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "MPNet", "DistilBert"])
def test_dropout_stands_where_transformers_has_it(kind, monkeypatch):
    """A dropout that is not random: what each of them leaves is a share of its own."""

    def share(values, p=0.5, training=True, inplace=False):
        return values * (1 - p) if training else values

    rates = (0.3, 0.2)
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    names = ("dropout", "attention_dropout") if kind == "DistilBert" else names
    model = net(kind, **dict(zip(names, rates, strict=True))).double().train()
    model.set_attn_implementation("eager")
    monkeypatch.setattr(torch.nn.functional, "dropout", share)
    same_as_transformers_own(model, 17, 9, 9, 3)


def test_a_network_with_dropout_of_its_own_is_not_trained_packed():
    assert described_with_dropout(net("ModernBert", mlp_dropout=0.1)) is None
    assert described_with_dropout(net("Qwen3", attention_dropout=0.1)) is None
    model = net("Bert")
    model.encoder.layer[0].intermediate.added = nn.Dropout(0.1)
    assert described_with_dropout(model) is None


def test_the_row_of_padding_has_no_gradient_where_it_is_the_end_of_a_text_too():
    model = net("Llama", pad_token_id=2, eos_token_id=2)
    tokens = [np.array([5, 6, 7, 2]), np.array([8, 2])]
    (states,), _ = PackedTransformer(model, LiveWeights(torch.float32), torch.float32)(tokens)
    states.square().sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[5].any()
    assert not gradient[2].any()

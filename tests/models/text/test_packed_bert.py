"""Packed computation against transformers' own forward, padded and masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from mmcl.models.text.packed_bert import PackedBert, packs

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}


def net(kind: str):
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**SIZES)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases and gains start at 0 and 1, which would hide their loss
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def texts(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(2, 50, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "Camembert"])
@torch.no_grad()
def test_every_layer_equals_transformers_own(kind):
    model = net(kind)
    assert packs(model)
    tokens = texts(17, 9, 9, 9, 3, 1)
    tokens[2][4] = 1  # a text may hold the padding token
    layers, runs = PackedBert(model, torch.float32)(tokens, all_layers=True)
    assert runs == [(1, 17), (3, 9), (1, 3), (1, 1)]
    start = 0
    for ids in tokens:
        alone = model(torch.from_numpy(ids).long()[None], output_hidden_states=True).hidden_states
        for ours, theirs in zip(layers, alone, strict=True):
            torch.testing.assert_close(ours[start : start + len(ids)], theirs[0], atol=1e-5, rtol=1e-5)
        start += len(ids)
    (last,), _ = PackedBert(model, torch.float32)(tokens)
    assert torch.equal(last, layers[-1])


@torch.no_grad()
def test_a_net_that_was_asked_for_all_its_states_once_still_packs():
    model = net("Bert")
    model(torch.tensor([[2, 3]]), output_hidden_states=True)  # transformers leaves hooks behind
    assert packs(model)


@torch.no_grad()
def test_bfloat16_is_close_and_leaves_the_weights_alone():
    model = net("Bert")
    (exact,), _ = PackedBert(model, torch.float32)(texts(12, 12, 5))
    (rough,), _ = PackedBert(model, torch.bfloat16)(texts(12, 12, 5))
    assert rough.dtype == torch.bfloat16
    assert torch.cosine_similarity(exact, rough.float()).min() > 0.999
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_what_computes_something_else_is_not_packed():
    assert not packs(transformers.BertModel(transformers.BertConfig(**SIZES, is_decoder=True)))
    adapted = net("Bert")
    adapted.encoder.layer[0].attention.self.query = type("Adapter", (torch.nn.Linear,), {})(32, 32)
    assert not packs(adapted)
    hooked = net("Bert")
    hooked.encoder.layer[1].register_forward_hook(lambda *_: None)
    assert not packs(hooked)
    assert not packs(torch.nn.Linear(2, 2))

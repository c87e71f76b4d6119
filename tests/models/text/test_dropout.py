"""The faster dropout: its rate, its scale, its gradient, and that a seed repeats it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from mmcl.models.text.dropout import Dropout, attention, dropped_places, speed_up_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_and_the_scale_of_the_rest(rate, dtype):
    torch.manual_seed(0)
    out = Dropout(rate)(torch.ones(1001, 301, dtype=dtype))
    kept = out[out != 0]
    assert abs(1 - kept.numel() / out.numel() - rate) < 5 * (rate * (1 - rate) / out.numel()) ** 0.5 + 1e-5
    scale = torch.full(kept.shape, 1 / (1 - rate), dtype=torch.float64)
    torch.testing.assert_close(kept.double(), scale, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=0)
    assert abs(float(out.double().mean()) - 1) < 0.02


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    zero = (Dropout(0.3)(torch.ones(200_000)) == 0).double() - 0.3
    for distance in (1, 2, 3, 4, 8):  # two gaps share the generator's number
        assert abs(float((zero[distance:] * zero[:-distance]).mean())) < 0.002


def test_every_place_is_dropped_equally_often_the_first_and_the_last_too():
    torch.manual_seed(0)
    draws = 4000
    for rate in (0.1, 0.6):
        counts = torch.zeros(5)
        for _ in range(draws):
            counts[dropped_places(5, rate)] += 1
        assert (counts / draws - rate).abs().max() < 5 * (rate * (1 - rate) / draws) ** 0.5


def test_what_is_not_contiguous_is_dropped_and_so_is_its_gradient():
    features = torch.randn(6, 50).T.requires_grad_()
    out = Dropout(0.5)(features)
    out.backward(torch.ones(6, 50).T)
    kept = out != 0
    torch.testing.assert_close(out, 2 * features * kept)
    assert torch.equal(features.grad, 2.0 * kept)


def test_the_gradient_is_that_of_what_was_kept_and_a_seed_repeats_it():
    layer, features = Dropout(0.4), torch.randn(7, 9, requires_grad=True)
    torch.manual_seed(3)
    out = layer(features)
    out.sum().backward()
    scale = out.detach() / features.detach()
    torch.testing.assert_close(features.grad, scale)
    torch.manual_seed(3)
    torch.testing.assert_close(layer(features), out)


def test_in_evaluation_and_at_no_rate_nothing_happens():
    features = torch.randn(5, 3)
    assert torch.equal(Dropout(0.4).eval()(features), features)
    assert torch.equal(Dropout(0.0)(features), features)
    assert torch.equal(Dropout(1.0)(features), torch.zeros(5, 3))


def test_it_takes_the_place_of_torchs():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.3))).eval()
    names = list(net.state_dict())
    speed_up_dropout(net)
    found = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    assert [(type(module), module.p, module.training) for module in found] == [
        (Dropout, 0.2, False),
        (Dropout, 0.3, False),
    ]
    assert list(net.state_dict()) == names


@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 4, 6)])
def test_attention_equals_that_of_torch_for_the_same_mask(lengths, monkeypatch):
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.25,
    )
    torch.manual_seed(0)
    net = BertModel(config).double().train()
    plain = copy.deepcopy(net)
    speed_up_dropout(net)
    kept = [torch.rand(3, 4, 9, 9) < 0.75 for _ in range(2)]

    def played(masks, features, rate):
        return features * next(masks) / (1 - rate) if rate else features

    masks = iter(kept)
    monkeypatch.setattr(Dropout, "forward", lambda layer, features: played(masks, features, layer.p))
    tokens = torch.randint(1, 50, (3, 9))
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    mine = net(tokens, mask).last_hidden_state
    assert next(masks, None) is None, "both layers drew their masks here"

    plain.set_attn_implementation("eager")  # which calls F.dropout
    again = iter(kept)
    monkeypatch.setattr(F, "dropout", lambda features, p, training, *_: played(again, features, p * training))
    theirs = plain(tokens, mask).last_hidden_state
    read = mask.bool()
    torch.testing.assert_close(mine[read], theirs[read])
    gradients = torch.autograd.grad(mine[read].square().sum(), list(net.embeddings.parameters()))
    for ours, theirs_ in zip(
        gradients, torch.autograd.grad(theirs[read].square().sum(), list(plain.embeddings.parameters())), strict=True
    ):
        torch.testing.assert_close(ours, theirs_)


@pytest.mark.parametrize("scaling", [None, 0.9])
def test_attention_scales_its_products_as_torch_does(scaling, monkeypatch):
    monkeypatch.setattr(Dropout, "forward", lambda layer, features: features)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 5).double()
    got, _ = attention(nn.Module(), query, key, value, None, dropout=0.1, scaling=scaling, is_causal=False)
    expected = F.scaled_dot_product_attention(query, key, value, scale=scaling)
    torch.testing.assert_close(got.transpose(1, 2), expected)

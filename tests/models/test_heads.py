"""Heads: chains of dense layers, their shorthands, and what they are rebuilt from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmcl.config.model import HeadConfig
from mmcl.models.heads import Head, Prototypes
from mmcl.models.layers import ACTIVATIONS, Dense
from mmcl.runtime.errors import MmclError


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("linear", [Dense(5, bias=False)]),
        ("mlp", [Dense(7, activation="gelu"), Dense(5, bias=False)]),
        ("tanh", [Dense(5, activation="tanh")]),
    ],
)
def test_kinds_are_shorthands_of_chains(kind, layers):
    short, chain = Head(HeadConfig(kind=kind, hidden=7), 6, 5), Head.from_layers(6, layers)
    assert short.layers == chain.layers
    chain.load_state_dict(short.state_dict())
    features = torch.randn(3, 6)
    torch.testing.assert_close(short(features), chain(features))


def test_tanh_is_berts_pooler():
    head, features = Head(HeadConfig(kind="tanh"), 6, 6), torch.randn(3, 6)
    weight, bias = head.linear_layers()[0].weight, head.linear_layers()[0].bias
    torch.testing.assert_close(head(features), torch.tanh(features @ weight.T + bias))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_dense_layers_equal_sentence_transformers(activation):
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    theirs = modules.Dense(6, 4, activation_function=ACTIVATIONS[activation]())
    head = Head.from_layers(6, [Dense(4, activation=ACTIVATIONS[activation].__name__)])
    head.linear_layers()[0].load_state_dict(theirs.linear.state_dict())
    features = torch.randn(3, 6)
    torch.testing.assert_close(head(features), theirs({"sentence_embedding": features})["sentence_embedding"])


@pytest.mark.parametrize(
    "head",
    [
        Head(HeadConfig(kind="mlp", hidden=3, dropout=0.2), 6, 4),
        Head.from_layers(6, [Dense(5, activation="ReLU"), Dense(3, bias=False), Dense(4, activation="sigmoid")], 0.1),
        Head.from_layers(6, []),
    ],
)
def test_a_head_is_rebuilt_from_what_it_says_of_itself(head):
    again = Head.from_spec(head.spec(), 6, head.layers[-1].width if head.layers else 6)
    again.load_state_dict(head.state_dict())
    features = torch.randn(3, 6)
    torch.testing.assert_close(again.eval()(features), head.eval()(features))
    assert (again.layers, again[0].p, again.spec()) == (head.layers, head[0].p, head.spec())


def test_older_descriptions_are_sections():
    spec = {"kind": "mlp", "hidden": None, "dropout": 0.0}
    assert [type(part) for part in Head.from_spec(spec, 6, 4)] == [nn.Dropout, nn.Linear, nn.GELU, nn.Linear]


def test_float32_features_meet_the_weights_precision():
    head = Head(HeadConfig(kind="linear"), 6, 4).bfloat16()
    assert head(torch.randn(3, 6)).dtype == torch.bfloat16


def test_mistakes_are_reported_in_one_line():
    with pytest.raises(MmclError, match=r"no activation 'thanh'; did you mean 'tanh'"):
        Head.from_layers(6, [Dense(4, activation="thanh")])
    with pytest.raises(MmclError, match="keeps the tower's width 6"):
        Head(HeadConfig(kind="none"), 6, 5)


def test_an_architecture_names_all_that_weights_depend_on():
    layers = [Dense(8, False, "relu", "batch"), Dense(4)]
    assert Head.from_layers(6, layers, dropout=0.1).architecture() == "6 → 8 (no bias, batch, relu) → 4"
    others = [
        Head.from_layers(5, layers),
        *(Head.from_layers(6, [layers[0]._replace(**change), layers[1]]) for change in (
            {"width": 9}, {"bias": True}, {"activation": "gelu"}, {"norm": "layer"},
        )),
        Head.from_layers(6, layers[:1]),
        Prototypes(6, 4),
    ]  # fmt: skip
    assert len({head.architecture() for head in [Head.from_layers(6, layers), *others]}) == 8
    assert (
        Head(HeadConfig(kind="tanh"), 6, 6).architecture()
        == Head.from_layers(6, [Dense(6, True, "Tanh")]).architecture()
    )


def test_prototypes_score_unit_vectors_and_come_back_to_unit_length():
    torch.manual_seed(0)
    prototypes = Prototypes(3, 5)
    vectors = F.normalize(torch.randn(2, 4, 3), dim=-1)
    before = prototypes.weight.detach().clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(prototypes(vectors), torch.einsum("vnd,kd->vnk", vectors, before))
    with torch.no_grad():
        prototypes.weight.mul_(torch.arange(1.0, 6.0)[:, None])
    prototypes.normalise()
    torch.testing.assert_close(prototypes.weight.detach(), before)

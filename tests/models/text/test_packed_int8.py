"""Packed transformers in 8-bit integers against themselves in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.models.text.packed import int8
from mmcl.models.text.packed.int8 import int8_transformer
from mmcl.runtime.device import multiplies_int8
from mmcl.runtime.int8 import Int8Linear
from tests.models.text.test_packed import net, packed, texts

pytestmark = pytest.mark.skipif(
    not multiplies_int8(torch.device("cpu")), reason="no products of 8-bit integers in this CPU"
)
STATES = torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
CALIBRATION = sorted(texts(*np.random.default_rng(2).integers(3, 60, 20)), key=len, reverse=True)


@pytest.fixture(autouse=True)
def narrow_layers_too(monkeypatch):
    """Those of these models are narrower than what is faster in integers with AMX."""
    monkeypatch.setattr(int8, "_LEAST_OUTPUTS", 0)


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="without AMX every layer is of integers")
@torch.no_grad()
def test_with_amx_narrow_layers_are_in_bfloat16_but_those_that_read_integers(monkeypatch):
    monkeypatch.setattr(int8, "_LEAST_OUTPUTS", 40)  # 32 wide, 48 within
    made = []
    monkeypatch.setattr(
        int8,
        "Int8Linear",
        lambda weight, *given, **named: made.append(tuple(weight.shape)) or Int8Linear(weight, *given, **named),
    )
    int8_transformer(net("Bert"), CALIBRATION)
    assert made == [(96, 32), (48, 32), (32, 48)] * 2
    made.clear()
    int8_transformer(net("Bert", hidden_act="quick_gelu"), CALIBRATION)  # which is no part of a product
    assert made == [(96, 32), (48, 32)] * 2


@pytest.mark.parametrize("kind", ["Bert", "MPNet", "DistilBert", "ModernBert", "Qwen3"])
@torch.no_grad()
def test_states_are_close_to_those_in_float32_and_the_weights_stay(kind):
    model = net(kind)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tokens = texts(40, 40, 13, 5)
    (exact,), runs = packed(model)(tokens)
    run, cosine = int8_transformer(model, CALIBRATION)
    (rough,), int8_runs = run(tokens)
    assert cosine == pytest.approx(float(torch.cosine_similarity(exact, rough).mean()), abs=0.005)
    assert int8_runs == runs
    assert rough.dtype == STATES
    rough = rough.float()
    assert torch.cosine_similarity(exact, rough).min() > 0.99
    assert not torch.equal(exact, rough)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", ["Bert", "ModernBert", "Qwen3"])
@torch.no_grad()
def test_a_text_has_the_same_states_to_the_bit_whatever_stands_beside_it(kind):
    run, _ = int8_transformer(net(kind), CALIBRATION)
    tokens = texts(*sorted(np.random.default_rng(1).integers(1, 90, 40).tolist(), reverse=True))
    (together,), _ = run(tokens)
    start = 0
    for ids in tokens:
        (alone,), _ = run([ids])
        assert torch.equal(alone, together[start : start + len(ids)])
        start += len(ids)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "quick_gelu"])
@torch.no_grad()
def test_activations(activation):
    model = net("Bert", hidden_act=activation)
    (exact,), _ = packed(model)(texts(11))
    run, _ = int8_transformer(model, CALIBRATION)
    (rough,), _ = run(texts(11))
    assert torch.cosine_similarity(exact, rough.float()).min() > 0.99


@torch.no_grad()
def test_ranges_are_those_of_the_calibration_texts_alone():
    model = net("Bert")
    first, again = (int8_transformer(model, CALIBRATION)[0] for _ in range(2))
    first(texts(80, 70))
    assert torch.equal(first(texts(9))[0][0], again(texts(9))[0][0])

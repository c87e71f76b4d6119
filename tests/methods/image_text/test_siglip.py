"""SigLIP as a method: where it starts, its loss, and a run from end to end."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mmcl.losses import sigmoid
from mmcl.methods import Context, Outputs, Rows, Siglip, Step
from mmcl.methods.image_text.siglip import SiglipConfig
from mmcl.methods.parts.matryoshka import MatryoshkaConfig

STEP = Step(0, 1)


@pytest.fixture
def make_siglip(make_encoder):
    def make(encoder=None, batch_size=8, **settings):
        inputs = {"image": "image", "text": "text"}
        return Siglip(SiglipConfig(**settings), encoder or make_encoder(), Context(inputs, batch_size=batch_size))

    return make


def test_starts_as_the_config_says_else_as_the_model_was_trained_else_at_the_log_odds(make_siglip, make_encoder):
    for scale, bias, settings, expected in [
        (4.76, -12.9, {"temperature": 0.5, "bias": 0.0}, (math.log(2), 0.0)),
        (4.76, -12.9, {}, (4.76, -12.9)),
        (4.6, None, {}, (math.log(10), -math.log(31))),  # a CLIP model: it has no bias
        (4.6, None, {"bias": -20.0}, (4.6, -20.0)),
        (None, None, {}, (math.log(10), -math.log(31))),
    ]:
        siglip = make_siglip(make_encoder(logit_scale=scale, logit_bias=bias), batch_size=32, **settings)
        assert siglip.learned_scale() == pytest.approx(expected)


def test_a_start_from_a_clip_model_takes_no_negative_for_a_positive(make_siglip, make_encoder):
    siglip = make_siglip(make_encoder(logit_scale=math.log(100)), batch_size=256)
    # CLIP's cosines: about 0.3 of what belongs together, and 0.2 of what does not.
    negative = 0.2 * siglip.logit_scale.exp() + siglip.logit_bias
    assert negative.item() < -3


def test_at_the_start_positives_and_negatives_pull_the_bias_equally(make_siglip, batch):
    siglip = make_siglip()
    vectors = {"image": torch.eye(8, 20), "text": torch.eye(20)[8:16]}  # nothing is similar
    siglip.loss(Outputs(vectors, Rows(torch.arange(8))), STEP).value.backward()
    assert siglip.logit_bias.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_the_sigmoid_loss_and_learns_scale_and_bias(make_siglip, batch):
    siglip = make_siglip(temperature=0.2, bias=-1.0)
    views = siglip.outputs(batch)
    loss = siglip.loss(siglip.project(views), STEP).value
    torch.testing.assert_close(
        loss, sigmoid(views.embeddings["image"], views.embeddings["text"], 0.2, -1.0, ids=batch.ids)
    )
    loss.backward()
    assert siglip.logit_scale.grad.abs() > 0
    assert siglip.logit_bias.grad.abs() > 0
    metrics = siglip.metrics(views)
    assert metrics["temperature"] == pytest.approx(0.2)
    assert metrics["bias"] == -1.0
    assert 0.0 <= metrics["accuracy"] <= 1.0


def test_what_is_not_to_be_learned_has_no_gradient(make_siglip):
    assert not make_siglip(learn_bias=False).logit_bias.requires_grad
    assert not make_siglip(learn_temperature=False).logit_scale.requires_grad


def test_the_temperature_may_fall_below_that_of_clip(make_siglip, batch):
    siglip = make_siglip(temperature=1 / 117)
    siglip.after_update(siglip.outputs(batch), STEP)
    assert siglip.learned_scale()[0] == pytest.approx(math.log(117))


def test_matryoshka_adds_the_loss_of_the_first_dimensions(make_siglip, batch):
    siglip = make_siglip(temperature=0.2, bias=-1.0, matryoshka=MatryoshkaConfig(dims=[3]))
    views = siglip.outputs(batch)
    cuts = [
        sigmoid(views.embeddings["image"][:, :dim], views.embeddings["text"][:, :dim], 0.2, -1.0, ids=batch.ids)
        for dim in (5, 3)
    ]
    torch.testing.assert_close(siglip.loss(siglip.project(views), STEP).value, sum(cuts))


def test_trains_from_end_to_end(tmp_path, shapes_config):
    from mmcl import load, train

    shapes_config["method"] = {"name": "siglip"}
    train(shapes_config, out=tmp_path, overrides=["training.lr=5e-3", "training.epochs=0.4"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    logged = [line for line in lines if "loss" in line]
    assert logged[0]["bias"] == pytest.approx(-math.log(63), abs=0.02)  # of a batch of 64
    assert logged[-1]["loss"] < 0.85 * logged[0]["loss"]
    encoder = load(tmp_path)  # knows what it was trained with
    assert encoder.logit_bias == pytest.approx(logged[-1]["bias"])
    assert math.exp(-encoder.logit_scale) == pytest.approx(logged[-1]["temperature"])

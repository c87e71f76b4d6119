"""Pairs with a score: CoSENT and the error of cosines against their formulas, with what stands beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcl.config.load import load_config
from mmcl.config.schema import Config
from mmcl.methods import Context, ScoredPairs, Simcse, Step
from mmcl.methods.parts.masked_language import MlmConfig
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.text.scored_pairs import ScoredPairsConfig
from mmcl.runtime.errors import MmclError

ROWS = {
    "anchor": ["two dogs", "the cat runs", "a bird sings", "two dogs", "a red house"],
    "positive": ["dogs on the beach", "the old cat", "two dogs", "a dogs", "the house in a tree"],
    "score": [5.0, 3.0, 0.0, 2.5, 1.0],
}
COLUMNS = {"anchor": "text", "positive": "text", "score": "number"}
STEP = Step(0, 1)


@pytest.fixture
def make(make_text_encoder):
    def make(exchange=None, **settings):
        return ScoredPairs(ScoredPairsConfig(**settings), make_text_encoder(), Context(COLUMNS, 8, exchange))

    return make


def cosines(outputs):
    """Of the pairs, in float64."""
    pair = (outputs.embeddings[side].detach().double() for side in ("anchor", "positive"))
    return F.cosine_similarity(*pair).numpy()


def cosent_of(similar, temperature):
    """ln(1 + Σ exp((cos_j - cos_i) / τ)) over the pairs of rows of which i has the higher score (Su 2022)."""
    scores = ROWS["score"]
    worse = [(i, j) for i in range(5) for j in range(5) if scores[i] > scores[j]]
    return np.log1p(sum(np.exp((similar[j] - similar[i]) / temperature) for i, j in worse))


def test_the_order_of_the_scores_is_learned_or_the_scores(make, make_batch):
    for settings in ({"temperature": 0.1}, {"loss": "cosine_mse"}):
        method = make(**settings).eval()
        outputs = method.outputs(make_batch(method.encoder, **ROWS))
        similar = cosines(outputs)
        wanted = (
            cosent_of(similar, 0.1)
            if "temperature" in settings
            else np.square(similar - np.array(ROWS["score"]) / 5).mean()
        )
        assert method.loss(method.project(outputs), STEP).value.item() == pytest.approx(wanted, rel=1e-4)
        metrics = method.metrics(outputs)
        assert metrics["correlation"] == pytest.approx(np.corrcoef(similar, ROWS["score"])[0, 1], abs=1e-5)
        assert ("temperature" in metrics) == ("temperature" in settings)
        assert method.negatives_per_query is None
    assert method.learned_scale() == (None, None)
    odd = replace(outputs, rows=replace(outputs.rows, values={"score": torch.tensor([0.0, 9.0, 1.0, 2.0, 3.0])}))
    with pytest.raises(MmclError, match=r"score_range is 0 to 5, but there are scores from 0 to 9"):
        method.loss(odd, STEP)


def test_a_head_masked_tokens_and_fewer_dimensions_stand_beside(make, make_batch):
    method = make(training_head=True, mlm=MlmConfig(weight=0.5), temperature=0.1).train()
    batch = make_batch(method.encoder, **ROWS)
    outputs = method.outputs(batch)
    loss = method.loss(method.project(outputs), STEP)
    through = {side: method.heads["projector"](outputs.embeddings[side]) for side in ("anchor", "positive")}
    expected = cosent_of(cosines(replace(outputs, embeddings=through)), 0.1)
    assert loss.parts["contrastive"].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(loss.value, loss.parts["contrastive"] + 0.5 * loss.parts["mlm"])
    nested = make(temperature=0.1, matryoshka=MatryoshkaConfig(dims=[3], weights=[2.0])).eval()
    outputs = nested.outputs(batch)
    short = {side: outputs.embeddings[side][:, :3] for side in ("anchor", "positive")}
    expected = cosent_of(cosines(outputs), 0.1) + 2 * cosent_of(cosines(replace(outputs, embeddings=short)), 0.1)
    assert nested.loss(outputs, STEP).value.item() == pytest.approx(expected, rel=1e-4)


def config_of(method, **columns):
    return Config(method=method, data={"train": {"source": "x.csv"}, "columns": columns}, model={})


def test_columns_are_a_pair_and_its_score():
    assert ScoredPairs.columns_of(config_of("scored_pairs", score="label")) == COLUMNS
    with pytest.raises(MmclError, match=r"data\.columns\.negative: method 'scored_pairs' has no such role"):
        ScoredPairs.columns_of(config_of("scored_pairs", negative="n"))
    with pytest.raises(MmclError, match=r"data\.columns\.score: scores are learned by method scored_pairs; set"):
        Simcse.columns_of(config_of("simcse", anchor="a", score="s"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"name": "simcse", "loss": "cosent"},
            "in 'method': loss 'cosent' is of pairs with a score; set name: scored_pairs",
        ),
        ({"name": "simcse", "loss": "cosine"}, r"unknown key 'method\.loss'"),
        ({"name": "simcse", "score_range": [0, 1]}, r"unknown key 'method\.score_range'"),
        ({"name": "scored_pairs", "loss": "info_nce"}, r"'method\.loss' is 'info_nce'"),
        ({"name": "scored_pairs", "queue": {}}, r"unknown key 'method\.queue'"),
        ({"name": "scored_pairs", "score_range": [5, 0]}, "score_range: two ends in ascending order"),
        ({"name": "scored_pairs", "loss": "cosine_mse", "learn_temperature": True}, "'cosine_mse' has no temperature"),
        ({"name": "scored_pairs", "loss": "cosine_mse", "temperature": 0.1}, "'cosine_mse' has no temperature"),
    ],
)
def test_mistakes_are_named_in_a_line(method, message):
    with pytest.raises(MmclError, match=message) as caught:
        load_config({"data": {"train": {"source": "rows.csv"}}, "model": {}, "method": method})
    assert "\n" not in str(caught.value)


def test_what_the_method_cannot_do_is_refused(make):
    with pytest.raises(MmclError, match=r"training\.exchange: method 'scored_pairs' needs the .* batch"):
        make(exchange="ring")
    with pytest.raises(MmclError, match="training_head"):
        make(training_head=True, matryoshka=MatryoshkaConfig(dims=[2]))

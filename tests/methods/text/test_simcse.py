"""SimCSE as a method, against the paper's equations in float64."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmcl.config.model import HeadConfig
from mmcl.config.schema import Config
from mmcl.data.batches.views import make_views
from mmcl.encoding import Encoder
from mmcl.losses import Guide, Negatives, debiased_info_nce, distillation, info_nce
from mmcl.methods import Context, Simcse, Step
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.references import GuideConfig, TeacherConfig
from mmcl.methods.text.simcse import SimcseConfig
from mmcl.models.heads import Head
from mmcl.models.text.dropout import Dropout
from mmcl.models.text.embedder import TextEmbedder
from mmcl.runtime.errors import MmclError

ANCHORS = ["two dogs", "the cat runs", "a bird sings", "two dogs", "a red house"]
POSITIVES = ["dogs on the beach", "the old cat", "two dogs", "a dogs", "the house in a tree"]
HARD = ["the beach", "two dogs", "the old cat", "a bird", "the red tree"]
HARDER = ["a beach", "the cat", "a red bird", "dogs", "the house"]
SENTENCES = ["two dogs", "the old cat sleeps in a house", "a bird sings", "a red bird sings on a tree", "the cat runs"]

STEP = Step(0, 1)


@pytest.fixture
def make_simcse(make_text_encoder):
    def make(*roles, encoder=None, references=None, **settings):
        inputs = dict.fromkeys(roles or ("text",), "text")
        encoder = encoder or make_text_encoder()
        config = SimcseConfig(**settings)
        return Simcse(config, encoder, Context(inputs, batch_size=8, references=references or {}))

    return make


def with_rows(outputs, **changes):
    return replace(outputs, rows=replace(outputs.rows, **changes))


def with_embeddings(outputs, embeddings):
    return replace(outputs, embeddings=embeddings)


class DropoutMasks:
    """Stands in for torch's dropout: draws masks and keeps them, or plays some again."""

    def __init__(self, masks=None):
        self.masks, self.play = [] if masks is None else masks, masks is not None
        self.calls = 0

    def __call__(self, x, p=0.5, training=True, inplace=False):
        if not training or p == 0.0:
            return x
        if not self.play:
            self.masks.append((torch.rand_like(x) >= p).double() / (1 - p))
        self.calls += 1
        return x * self.masks[self.calls - 1].to(x.dtype)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_unsupervised_equals_a_float64_reference_with_the_same_dropout_masks(
    make_simcse, make_text_encoder, make_batch, monkeypatch
):
    encoder = make_text_encoder(dropout=0.3)
    net, head = encoder.embedder("text").tower.net, encoder.embedder("text").head
    net.set_attn_implementation("eager")  # the others drop attention inside a kernel, where no mask can be seen
    simcse, batch = make_simcse(encoder=encoder).train(), make_batch(encoder, text=SENTENCES)
    recorder = DropoutMasks()
    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", recorder)
        patch.setattr(Dropout, "forward", nn.Dropout.forward)  # ours draws the same in another way
        patch.setattr(TextEmbedder, "_features", lambda self, **inputs: self.tower(**inputs))  # in the order given
        views = simcse.outputs(batch)
    loss = simcse.loss(simcse.project(views), STEP).value
    assert len(recorder.masks) == 1 + 2 * 3  # the embeddings; in each layer attention, its output, the output: ONE pass

    tokens, n = batch.inputs["text"], len(SENTENCES)
    double = copy.deepcopy(net).double()
    vectors = []
    for places in (slice(0, n), slice(n, 2 * n)):
        player = DropoutMasks([mask[places] for mask in recorder.masks])
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(F, "dropout", player)
            patch.setattr(Dropout, "forward", nn.Dropout.forward)
            states = double(**tokens).last_hidden_state.numpy()
        kept = tokens["attention_mask"].numpy()[:, :, None]
        pooled = (states * kept).sum(1) / kept.sum(1)
        vectors.append(unit(pooled @ head[1].weight.detach().double().numpy().T))
    terms = np.exp(vectors[0] @ vectors[1].T / 0.05)
    expected = -np.log(np.diag(terms) / terms.sum(1)).mean()
    assert np.abs(vectors[0] - vectors[1]).max() > 0.05  # the two masks differ
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_duplicated_sentences_leave_each_other_s_denominators_and_nothing_else_changes(make_simcse, make_batch):
    simcse = make_simcse(temperature=0.2).eval()
    texts = [*SENTENCES, SENTENCES[1], SENTENCES[1], SENTENCES[4]]
    views = simcse.outputs(make_batch(simcse.encoder, text=texts))
    masked = simcse.loss(simcse.project(views), STEP).value.item()
    unmasked = simcse.loss(with_rows(views, ids=torch.arange(len(texts))[:, None]), STEP).value.item()

    vectors = unit(views.embeddings["anchor"].detach().double().numpy())
    terms = np.exp(vectors @ vectors.T / 0.2)
    rows = range(len(texts))
    candidates = [terms[i].sum() for i in rows]
    others = [terms[i, i] + sum(terms[i, j] for j in rows if texts[j] != texts[i]) for i in rows]
    positives = np.diag(terms)
    assert unmasked == pytest.approx(-np.log(positives / candidates).mean(), rel=1e-5)
    assert masked == pytest.approx(-np.log(positives / others).mean(), rel=1e-5)
    assert unmasked - masked == pytest.approx(np.log(np.divide(candidates, others)).mean(), rel=1e-3)
    assert unmasked - masked > 0.05


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_supervised_with_hard_negatives_equals_the_paper_s_equation(make_simcse, make_batch, weight):
    roles = {"anchor": ANCHORS, "positive": POSITIVES, "negative": HARD, "negative_2": HARDER}
    simcse = make_simcse(*roles, hard_negative_weight=weight).eval()
    batch = make_batch(simcse.encoder, **roles)
    a, p, n, m = (
        unit(simcse.encoder.embedder("text")(**batch.inputs[role]).detach().double().numpy()) for role in roles
    )
    total = 0.0
    for i in range(5):
        own = {ANCHORS[i], POSITIVES[i]}  # what is no negative of this row
        below = 0.0
        for j in range(5):
            if j == i or not {ANCHORS[j], POSITIVES[j]} & own:
                below += math.exp(a[i] @ p[j] / 0.05)
            alpha = weight if j == i else 1.0
            below += sum(
                alpha * math.exp(a[i] @ hard[j] / 0.05)
                for hard, texts in ((n, HARD), (m, HARDER))
                if texts[j] not in own
            )
        total -= math.log(math.exp(a[i] @ p[i] / 0.05) / below)
    assert simcse.loss(simcse.project(simcse.outputs(batch)), STEP).value.item() == pytest.approx(total / 5, rel=1e-4)


def test_pairs_alone_may_be_symmetric_and_debiased(make_simcse, make_batch):
    roles = {"anchor": ANCHORS, "positive": POSITIVES}
    settings = {"symmetric": True, "debias": 0.1, "hardness": 0.5, "temperature": 0.3}
    simcse = make_simcse(*roles, **settings)
    batch = make_batch(simcse.encoder, **roles)
    views = simcse.eval().outputs(batch)
    a, p = batch.ids.unbind(1)
    ids = torch.stack([a, a, p, p], 1), torch.stack([a, p, a, p], 1)
    expected = debiased_info_nce(
        views.embeddings["anchor"], views.embeddings["positive"], 0.3, debias=0.1, hardness=0.5, ids=ids
    )
    torch.testing.assert_close(simcse.loss(simcse.project(views), STEP).value, expected)
    assert simcse.metrics(views).keys() == {"accuracy", "temperature"}
    assert all(view.column == name for name, view in simcse.views().items())


def test_another_draw_of_the_texts_takes_the_place_of_the_second_view(make_simcse, make_batch):
    simcse = make_simcse().eval()
    assert {view.column for view in simcse.views().values()} == {"text"}
    batch = make_batch(simcse.encoder, text=SENTENCES)
    changed = ["dogs", "the old cat in a house on the beach", "a bird", "bird sings on the tree", "cat runs"]
    batch.draws["text"] = [make_batch(simcse.encoder, text=changed).inputs["text"]]  # longer than the first
    views = simcse.outputs(batch)
    embedder = simcse.encoder.embedder("text")
    for draw, side in enumerate(simcse.sides):
        torch.testing.assert_close(views.embeddings[side], embedder(**batch.drawn("text", draw)), rtol=1e-5, atol=1e-5)


def test_features_of_a_frozen_tower_are_embedded_like_tokens(make_simcse, make_text_encoder):
    from mmcl.data.batches.batch import Batch

    simcse = make_simcse("anchor", "positive", "negative", encoder=make_text_encoder(frozen=True))
    features = {role: {"features": torch.randn(4, 8)} for role in simcse.columns}
    views = simcse.outputs(Batch(features, torch.arange(12).reshape(4, 3), torch.arange(4), torch.arange(4)))
    for role, given in features.items():
        assert torch.allclose(views.embeddings[role], simcse.encoder.embedder("text")(**given))


def test_a_teacher_and_a_guide_see_all_roles_and_are_no_parts(make_simcse, make_text_encoder, make_batch):
    roles = {"anchor": ANCHORS, "positive": POSITIVES, "negative": HARD}
    references = {name: make_text_encoder(dim=3, width=16) for name in ("teacher", "guide")}
    settings = {"teacher": TeacherConfig(name="x", weight=2.0), "guide": GuideConfig(name="y", margin=0.05)}
    simcse = make_simcse(*roles, references=references or {}, temperature=0.1, **settings)
    assert not any("teacher" in name or "guide" in name for name in simcse.state_dict())
    batch = make_batch(simcse.encoder, **roles)
    embedded = {}
    for name, reference in references.items():
        batch.references[name] = {}
        for role in roles:
            features = torch.randn(5, 16)
            batch.references[name][role] = {"features": features}
            embedded[f"{name}_{role}"] = reference.embedder("text").head(features)
    views = simcse.outputs(batch)
    loss = simcse.loss(simcse.project(views), STEP)
    guide = Guide(*(embedded[f"guide_{role}"] for role in roles), 0.05)
    ids = simcse._identities(batch.ids)
    vectors = views.embeddings["anchor"], views.embeddings["positive"]
    ids = ids["anchor"], ids["positive"]
    negatives = Negatives(views.embeddings["negative"], batch.ids[:, 2:].expand(-1, 4))
    contrast = info_nce(*vectors, 0.1, ids=ids, negatives=negatives, guide=guide, symmetric=False)
    term = distillation(*vectors, embedded["teacher_anchor"], embedded["teacher_positive"], 0.1, 0.01)
    torch.testing.assert_close(loss.parts, {"contrastive": contrast, "distillation": term})
    torch.testing.assert_close(loss.value, contrast + 2 * term)


def test_the_references_of_a_sentence_are_those_of_both_its_views(make_simcse, make_text_encoder, make_batch):
    settings = {"teacher": TeacherConfig(name="x"), "guide": GuideConfig(name="y")}
    simcse = make_simcse(references={name: make_text_encoder() for name in settings}, **settings)
    batch = make_batch(simcse.encoder, text=SENTENCES)
    batch.references = {name: {"text": {"features": torch.randn(5, 8)}} for name in settings}
    views = simcse.outputs(batch)
    assert simcse.column("anchor") == simcse.column("positive") == "text"
    assert torch.isfinite(simcse.loss(simcse.project(views), STEP).value)


def test_matryoshka_adds_the_loss_of_the_first_dimensions(make_simcse, make_batch):
    roles = {"anchor": ANCHORS, "positive": POSITIVES, "negative": HARD}
    plain = make_simcse(*roles).eval()
    nested = make_simcse(*roles, matryoshka=MatryoshkaConfig(dims=[3, 2], weights=[0.5, 2.0])).eval()
    views = plain.outputs(make_batch(plain.encoder, **roles))
    cuts = [
        plain.loss(with_embeddings(views, {role: views.embeddings[role][:, :dim] for role in roles}), STEP).value
        for dim in (6, 3, 2)
    ]
    torch.testing.assert_close(nested.loss(views, STEP).value, cuts[0] + 0.5 * cuts[1] + 2.0 * cuts[2])
    with pytest.raises(MmclError, match="6 is no part of the model's 6 dimensions"):
        make_simcse(matryoshka=MatryoshkaConfig(dims=[6]))


def test_the_training_head_stands_before_the_loss_in_training_only(make_simcse, make_batch):
    simcse = make_simcse(training_head=True)
    plain = make_simcse(encoder=simcse.encoder)
    before = Encoder(plain.encoder).encode(SENTENCES)
    views = simcse.outputs(make_batch(simcse.encoder, text=SENTENCES))
    through = {side: simcse.heads["projector"](views.embeddings[side]) for side in ("anchor", "positive")}
    weight, bias = simcse.heads["projector"][1].weight, simcse.heads["projector"][1].bias
    torch.testing.assert_close(through["anchor"], torch.tanh(F.linear(views.embeddings["anchor"], weight, bias)))
    torch.testing.assert_close(
        simcse.loss(simcse.project(views), STEP).value, plain.loss(with_embeddings(views, through), STEP).value
    )
    assert simcse.eval().project(views) is views
    assert any(name.startswith("heads.projector") for name in simcse.state_dict())
    assert not any("projector" in name for name in simcse.encoder.state_dict())
    simcse.heads["projector"][1].weight.data.add_(1.0)
    assert np.array_equal(Encoder(simcse.encoder).encode(SENTENCES), before)


def test_training_goes_on_with_the_head_that_a_model_was_trained_with(make_simcse, make_text_encoder):
    encoder = make_text_encoder()
    encoder.heads = {"projector": (head := Head(HeadConfig(kind="tanh"), 6, 6))}
    assert make_simcse(encoder=encoder, training_head=True).heads["projector"] is head
    assert not make_simcse(encoder=encoder).heads


def config_of(columns, of_source=None):
    data = {"train": {"source": "x.csv", "columns": of_source or {}}, "columns": columns}
    return Config(method={"name": "simcse"}, data=data, model={})


def test_columns_say_which_roles_there_are():
    for columns, expected in [
        ({}, ["text"]),
        ({"text": "sentence"}, ["text"]),
        ({"anchor": "a"}, ["anchor", "positive"]),
        ({"positive": "p"}, ["anchor", "positive"]),
        (
            {"negative_10": "x", "negative_2": "y", "negative": "z"},
            ["anchor", "positive", "negative", "negative_2", "negative_10"],
        ),
    ]:
        assert list(Simcse.columns_of(config_of(columns))) == expected
    named_by_source = config_of({}, of_source={"anchor": "q", "negative": "n"})
    assert list(Simcse.columns_of(named_by_source)) == ["anchor", "positive", "negative"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ancor": "a"}, r"data\.columns\.ancor: .* did you mean 'anchor'"),
        ({"anchor": "a", "negative_x": "n"}, "negative_x: .* did you mean 'negative'"),
        ({"text": "t", "anchor": "a"}, "text: .* reads anchor, positive; leave text out"),
        ({"anchor": "a", "score": "s"}, r"data\.columns\.score: scores are learned by method scored_pairs"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns, message):
    with pytest.raises(MmclError, match=message):
        Simcse.columns_of(config_of(columns))


def test_settings_that_would_do_nothing_are_refused(make_simcse):
    with pytest.raises(MmclError, match="no hard negatives"):
        make_simcse("anchor", "positive", hard_negative_weight=2.0)
    with pytest.raises(MmclError, match="training_head"):
        make_simcse(training_head=True, matryoshka=MatryoshkaConfig(dims=[2]))


def test_the_temperature_is_kept_still_unless_it_is_to_learn(make_simcse, make_batch):
    assert math.exp(-make_simcse().logit_scale.item()) == pytest.approx(0.05)
    assert not make_simcse().logit_scale.requires_grad
    learning = make_simcse(learn_temperature=True)
    learning.logit_scale.data.fill_(9.0)
    learning.after_update(learning.outputs(make_batch(learning.encoder, text=SENTENCES)), STEP)
    assert learning.temperature.item() == pytest.approx(0.01)


def test_trains_from_end_to_end_with_all_that_stands_beside(tmp_path, caplog):
    from mmcl import load, train

    words = ["dogs", "cats", "birds", "sing", "run", "sleep", "red", "old", "house", "tree"]
    rows = [f"{a} {b} {c}" for a in words for b in words for c in words[:4]]
    (tmp_path / "rows.csv").write_text("\n".join(["text", *rows]))
    config = {
        "method": {"name": "simcse", "training_head": True, "mlm": {"weight": 0.5}},
        "data": {"train": {"source": str(tmp_path / "rows.csv")}},
        "model": {
            "dim": 16,
            "text": {"layers": 1, "width": 16, "heads": 2, "head": {"kind": "none"}, "tokenizer": {"vocab_size": 60}},
        },
        "text_augmentation": {"drop": 0.2},
        "training": {"epochs": 4, "batch_size": 40, "lr": 5e-3, "log_every": 1},
    }
    run = train(config, out=tmp_path / "run")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    logged = [line for line in lines if "loss" in line]
    for line in logged:
        assert line["loss"] == pytest.approx(line["contrastive"] + 0.5 * line["mlm"], rel=1e-5)
        assert line["temperature"] == pytest.approx(0.05)
    assert logged[-1]["contrastive"] < 0.8 * logged[0]["contrastive"]
    assert logged[-1]["mlm"] < logged[0]["mlm"]
    assert "collapsed" not in caplog.text  # the terms of masked tokens are no embeddings
    encoder = load(run.folder)
    assert list(encoder.towers.heads) == ["projector"]
    assert encoder.encode(rows[:3]).shape == (3, 16)


def test_halves_of_a_sentence_are_its_views(make_simcse, make_batch):
    simcse = make_simcse(positives="halves").train()
    batch = make_batch(simcse.encoder, text=SENTENCES)
    first, second = make_views(simcse.views(), batch, change=True).values()
    special = simcse.encoder.text().processor.tokenizer.all_special_ids
    for row, whole in enumerate(batch.inputs["text"]["input_ids"].tolist()):
        halves = [half["input_ids"][row][half["attention_mask"][row] == 1].tolist() for half in (first, second)]
        words = [[token for token in half if token not in special] for half in halves]
        assert sorted(words[0] + words[1]) == sorted(token for token in whole if token not in special)
    in_use = make_views(simcse.views(), batch, change=False)["anchor"]["input_ids"]
    assert torch.equal(in_use, batch.inputs["text"]["input_ids"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"columns": {"anchor": "a", "positive": "b"}}}, "method.positives: halves are of a text alone"),
        ({"text_augmentation": {"drop": 0.1}}, "method.positives: halves do not go with text_augmentation"),
    ],
)
def test_halves_are_of_a_text_that_nothing_else_changes(settings, message):
    settings |= {"data": {"train": {"source": "rows.csv"}} | settings.get("data", {}), "model": {"text": {}}}
    with pytest.raises(MmclError, match=message):
        Simcse.columns_of(Config.model_validate({"method": {"name": "simcse", "positives": "halves"}} | settings))

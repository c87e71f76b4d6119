"""CLIP as a method: where it starts, what its loss is made of, and a teacher that is no part of it."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save

from mmcl.config.data import AugmentationConfig
from mmcl.config.schema import Config
from mmcl.data.augment.images import Augmentation
from mmcl.data.batches.batch import MINED
from mmcl.data.batches.views import Extra
from mmcl.losses import Negatives, distillation, info_nce
from mmcl.methods import Clip, Context, Step
from mmcl.methods.image_text.clip import ClipConfig
from mmcl.methods.paired import key_of
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.queue import QueueConfig
from mmcl.methods.parts.references import TeacherConfig
from mmcl.runtime.errors import MmclError

INPUTS = {"image": "image", "text": "text"}

STEP = Step(0, 1)


@pytest.fixture
def make_clip(make_encoder):
    def make(encoder=None, **settings):
        given = {name: settings.pop(name) for name in ("augmentation", "references", "mined") if name in settings}
        return Clip(ClipConfig(**settings), encoder or make_encoder(), Context(INPUTS, batch_size=8, **given))

    return make


def test_starts_at_the_config_s_temperature_else_the_model_s_else_its_own(make_clip, make_encoder):
    for encoder, settings, expected in [
        (make_encoder(logit_scale=3.0), {"temperature": 0.5}, math.log(2)),
        (make_encoder(logit_scale=3.0), {}, 3.0),
        (make_encoder(), {}, math.log(1 / 0.07)),
    ]:
        clip = make_clip(encoder, **settings)
        assert clip.logit_scale.item() == pytest.approx(expected)
        assert clip.learned_scale() == (pytest.approx(expected), None)
        assert clip.temperature.item() == pytest.approx(math.exp(-expected))


def test_the_temperature_stays_between_a_hundredth_and_one(make_clip, batch):
    clip = make_clip(learn_temperature=False)
    assert not clip.logit_scale.requires_grad
    for value, expected in ((9.0, math.log(100)), (-1.0, 0.0)):
        clip.logit_scale.data.fill_(value)
        clip.after_update(clip.outputs(batch), STEP)
        assert clip.logit_scale.item() == pytest.approx(expected)


def test_the_loss_is_info_nce_with_everything_the_config_says(make_clip, batch):
    clip = make_clip(label_smoothing=0.2, extra_texts=3, temperature=0.3)
    assert clip.extra == {"negatives": Extra("text", 3)}
    batch.extra["negatives"] = {"input_ids": torch.randn(3, 4)}
    batch.extra_ids["negatives"] = torch.tensor([[100, 0], [101, 2], [102, 50]])  # 0 and 2 are in the batch
    views = clip.outputs(batch)
    image, text = clip.encoder.embedder("image"), clip.encoder.embedder("text")
    expected = info_nce(
        image(**batch.inputs["image"]),
        text(**batch.inputs["text"]),
        0.3,
        ids=batch.ids,
        negatives=Negatives(text(**batch.extra["negatives"]), batch.extra_ids["negatives"]),
        label_smoothing=0.2,
    )
    loss = clip.loss(clip.project(views), STEP)
    torch.testing.assert_close(loss.value, expected)
    assert loss.parts == {}
    assert clip.metrics(views).keys() == {"accuracy", "temperature"}


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("mined", [0, 2])
def test_captions_of_every_kind_go_through_a_tower_in_one_pass(make_clip, batch, momentum, mined):
    """Also in parts without further captions: in shards, processes with fewer passes would be waited for forever."""
    queue = None if momentum is None else QueueConfig(size=8, momentum=momentum)
    clip = make_clip(extra_texts=3, queue=queue, mined=mined).train()
    batch.extra["negatives"], batch.extra_ids["negatives"] = (
        {"input_ids": torch.randn(3, 4)},
        torch.arange(6).view(3, 2),
    )
    if mined:
        batch.extra[MINED], batch.extra_ids[MINED] = {"input_ids": torch.randn(16, 4)}, torch.arange(32).view(16, 2)
    learning = clip.encoder.embedder("text")
    towers = [learning] if clip.momentum is None else [learning, clip.momentum.parts["text"]]
    passes = []
    for embedder in towers:
        embedder.tower.register_forward_hook(lambda tower, given, features: passes.append(tower))
    parts = batch.split([2, 2, 2, 2])
    assert ["negatives" in part.extra for part in parts] == [False, True, True, True]
    for part in parts:
        passes.clear()
        views = clip.outputs(part)
        assert sorted(map(id, passes)) == sorted(id(embedder.tower) for embedder in towers)
        everything = views.embeddings | views.keys
        for name in ("negatives", *([MINED] if mined else [])):
            assert (name in everything) == (name in part.extra)
            if name in part.extra:
                torch.testing.assert_close(everything[name], towers[-1](**part.extra[name]))
        torch.testing.assert_close(views.embeddings["text"], learning(**part.inputs["text"]))
        torch.testing.assert_close(key_of(views, "text"), towers[-1](**part.inputs["text"]))


def test_images_are_augmented_in_training_only(make_clip, batch):
    batch.inputs["image"] = {"pixels": torch.randint(256, (8, 2, 2, 3), dtype=torch.uint8)}
    config = AugmentationConfig(brightness=0.5, flip=0.5)
    clip = make_clip(augmentation=config)
    changed = Augmentation(config, 2)(batch.inputs["image"]["pixels"], batch.seeds)
    assert torch.equal(clip.view_inputs(batch)["image"]["pixels"], changed)
    assert torch.equal(clip.eval().view_inputs(batch)["image"]["pixels"], batch.inputs["image"]["pixels"])
    batch.inputs["image"] = {"features": torch.randn(8, 6)}  # of a frozen tower
    assert clip.train().view_inputs(batch)["image"] is batch.inputs["image"]


def test_matryoshka_cuts_the_extra_texts_as_well(make_clip, batch):
    clip = make_clip(extra_texts=3, temperature=0.3, matryoshka=MatryoshkaConfig(dims=[2], weights=[0.5]))
    batch.extra["negatives"] = {"input_ids": torch.randn(3, 4)}
    batch.extra_ids["negatives"] = torch.tensor([[100, 0], [101, 2], [102, 50]])
    views = clip.outputs(batch)
    terms = [
        info_nce(
            views.embeddings["image"][:, :dim],
            views.embeddings["text"][:, :dim],
            0.3,
            ids=batch.ids,
            negatives=Negatives(views.embeddings["negatives"][:, :dim], batch.extra_ids["negatives"]),
        )
        for dim in (5, 2)
    ]
    torch.testing.assert_close(clip.loss(clip.project(views), STEP).value, terms[0] + 0.5 * terms[1])
    with pytest.raises(MmclError, match="9 is no part of the model's 5 dimensions"):
        make_clip(matryoshka=MatryoshkaConfig(dims=[9]))


def test_columns_of_roles_that_it_has_not_are_named_with_where_they_stand():
    def config(columns, source):
        return Config(data={"train": {"source": "x.csv"}, "mix": [source], "columns": columns}, model={})

    plain = {"source": "y.csv"}
    assert Clip.columns_of(config({"text": "caption"}, plain)) == INPUTS
    with pytest.raises(MmclError, match=r"data\.columns\.txt: method 'clip' has no such role; did you mean 'text'"):
        Clip.columns_of(config({"txt": "caption"}, plain))
    with pytest.raises(MmclError, match=r"data\.mix\.0\.columns\.anchor"):
        Clip.columns_of(config({}, plain | {"columns": {"anchor": "a"}}))
    labelled = config({"label": "caption"}, plain).model_dump(exclude={"model"})
    towers = {"image": {"modality": "image"}, "label": {"modality": "text"}}
    with pytest.raises(MmclError, match=r"model\.towers\.label: data\.columns\.label is of labels"):
        Clip.columns_of(Config(**labelled, model={"towers": towers}))


def taught(make_clip, teacher, **settings):
    return make_clip(temperature=0.1, teacher=TeacherConfig(name="x", **settings), references={"teacher": teacher})


@pytest.mark.parametrize(
    ("settings", "learned", "temperature"),
    [({"temperature": 0.3}, math.log(50), 0.3), ({}, math.log(50), 0.02), ({}, None, 0.01)],
)
def test_a_teacher_adds_a_term_at_its_own_temperature(make_clip, make_encoder, batch, settings, learned, temperature):
    teacher = make_encoder(dim=3, logit_scale=learned)
    clip = taught(make_clip, teacher, weight=2.5, **settings)
    views = clip.outputs(batch)
    loss = clip.loss(clip.project(views), STEP)
    features = [
        teacher.embedder(role).head(batch.references["teacher"][role]["features"]) for role in ("image", "text")
    ]
    term = distillation(views.embeddings["image"], views.embeddings["text"], *features, 0.1, temperature)
    pairs = info_nce(views.embeddings["image"], views.embeddings["text"], 0.1, ids=batch.ids)
    torch.testing.assert_close(loss.parts, {"contrastive": pairs, "distillation": term})
    torch.testing.assert_close(loss.value, pairs + 2.5 * term)


def test_a_teacher_is_no_part_of_the_module_yet_goes_where_it_goes(make_clip, make_encoder, batch):
    teacher = make_encoder(dim=3)
    before = save(teacher.state_dict())
    clip = taught(make_clip, teacher).train()
    alone = make_clip()
    assert clip.references == {"teacher": teacher}
    assert clip.state_dict().keys() == alone.state_dict().keys()
    assert len(list(clip.parameters())) == len(list(alone.parameters()))
    assert teacher not in clip.modules()
    assert not teacher.training

    optimizer = torch.optim.SGD(clip.parameters(), lr=1.0)
    clip.loss(clip.project(clip.outputs(batch)), STEP).value.backward()
    optimizer.step()
    assert save(teacher.state_dict()) == before
    assert all(p.grad is None for p in teacher.parameters())
    clip.to(torch.float64)
    assert next(teacher.parameters()).dtype == torch.float64


def test_autocast_does_not_round_the_teacher(make_clip, make_encoder, batch):
    clip = taught(make_clip, make_encoder(dim=3))
    with torch.autocast("cpu", torch.bfloat16):
        inside = clip.outputs(batch)
    assert inside.embeddings["image"].dtype == torch.bfloat16
    outside = clip.outputs(batch).rows.references["teacher"]
    for role, vectors in inside.rows.references["teacher"].items():
        assert torch.equal(vectors, outside[role])


def test_a_teacher_and_its_settings_go_together(make_clip, make_encoder):
    with pytest.raises(ValueError, match="names"):
        make_clip(references={"teacher": make_encoder()})
    with pytest.raises(ValueError, match="names"):
        make_clip(teacher=TeacherConfig(name="x"))


def test_learns_from_a_teacher_from_end_to_end(tmp_path, shapes_config):
    from mmcl import load, train

    few = ["training.epochs=0.05", "training.log_every=1"]  # three steps
    teacher = train(shapes_config, out=tmp_path / "teacher", overrides=few)
    shapes_config["method"] = {"teacher": {"name": str(teacher.folder), "weight": 2.0}}
    student = train(shapes_config, out=tmp_path / "student", overrides=[*few, "seed=1"])
    lines = [json.loads(line) for line in (student.folder / "metrics.jsonl").open()]
    logged = [line for line in lines if "loss" in line]
    assert len(logged) == 3
    for line in logged:
        assert line["loss"] == pytest.approx(line["contrastive"] + 2 * line["distillation"], rel=1e-5)
    weights = [load(run).state_dict() for run in (teacher.folder, student.folder)]
    assert weights[0].keys() == weights[1].keys()  # and none of the teacher's


def test_all_of_a_label_are_positives_and_no_negative_is_of_it(make_encoder, batch):
    """Neither among extra texts nor in a queue."""
    context = Context(INPUTS | {"label": "label"}, batch_size=8)
    clip = Clip(ClipConfig(extra_texts=3, temperature=0.3, queue=QueueConfig(size=4)), make_encoder(), context)
    stored = "7 negatives per query and up to 4 queued ones"
    assert clip.compared_with() == f"at most {stored}, positives where the label is the same"
    labels = torch.tensor([5, 5, 6, 7, 5, 6, 8, 9])
    batch.inputs["label"] = {"labels": labels}
    batch.extra["negatives"] = {"input_ids": torch.randn(3, 4)}
    batch.extra_ids["negatives"] = torch.tensor([[100, 200, 5], [101, 201, 6], [102, 202, 1]])
    clip.after_update(clip.outputs(batch), STEP)
    stored = clip.queue.contents()
    assert set(stored["ids"][:, 2].tolist()) == {5, 6, 8, 9}
    outputs = clip.outputs(batch)
    image, text = (outputs.embeddings[side].double() for side in ("image", "text"))
    extra = torch.cat([outputs.embeddings["negatives"], stored["text"]]).double()
    extra_labels = torch.cat([batch.extra_ids["negatives"][:, 2], stored["ids"][:, 2]])
    losses = []
    for queries, keys, more, of_more in (
        (image, text, extra, extra_labels),
        (text, image, stored["image"].double(), stored["ids"][:, 2]),
    ):
        cosines, others = (F.cosine_similarity(queries[:, None], x[None], dim=-1) / 0.3 for x in (keys, more))
        others = others.masked_fill(labels[:, None] == of_more[None], -torch.inf)
        log_p = cosines - torch.cat([cosines, others], dim=1).logsumexp(dim=1, keepdim=True)
        positive = labels[:, None] == labels[None]
        losses.append(-(log_p * positive).sum(dim=1) / positive.sum(dim=1))
    assert clip.loss(outputs, STEP).value.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)

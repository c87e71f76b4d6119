"""Clip with a queue of former keys, against explicit lists of them."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import replace

import pytest
import torch

from mmcl.losses import Negatives, batch_accuracy, info_nce
from mmcl.methods import Clip, Context, Outputs
from mmcl.methods.image_text.clip import ClipConfig
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.queue import QueueConfig

from .former_keys import STEP, exactly, learn, one_way


def shared(a, b):
    return bool((a == b).any())


@pytest.fixture
def make_clip(make_encoder):
    def make(queue, references=None, **settings):
        config = ClipConfig(queue=queue, **settings)
        inputs = {"image": "image", "text": "text"}
        return Clip(config, make_encoder(), Context(inputs, batch_size=8, references=references or {})).double()

    return make


def batches(batch, count):
    """Others like it, of which half of the rows come back in the next one, alone or with another partner."""
    for number in range(count):
        torch.manual_seed(number)
        inputs = {
            role: {name: torch.randn_like(x) for name, x in named.items()} for role, named in batch.inputs.items()
        }
        ids = batch.ids + 4 * number
        ids[1, 1] += 1000
        yield replace(batch, inputs=inputs, ids=ids)


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("size", [5, 12, 100])
def test_clip_tells_images_from_former_texts_and_texts_from_former_images(make_clip, batch, size, momentum):
    clip = make_clip(QueueConfig(size=size, momentum=momentum), temperature=0.2, label_smoothing=0.1)
    copies = {}
    if momentum is not None:
        copies = {side: copy.deepcopy(clip.encoder.embedder(side)) for side in clip.sides}
    former = deque(maxlen=size)
    for step, one in enumerate(batches(batch, 5)):
        clip.train()
        outputs = clip.outputs(one)
        loss = clip.loss(outputs, STEP).value
        image, text = (clip.encoder.embedder(side)(**one.inputs[side]) for side in clip.sides)
        keys = {"image": image, "text": text}
        if copies:
            keys = {side: copies[side](**one.inputs[side]).detach() for side in clip.sides}
        ids = one.ids

        def same(i, j, ids=ids):
            return shared(ids[i], ids[j])

        def same_former(i, m, ids=ids):
            return shared(ids[i], former[m]["ids"])

        ways = [
            one_way(query, keys[side], [row[side] for row in former], same, same_former, clip.temperature, 0.1)
            for query, side in ((image, "text"), (text, "image"))
        ]
        expected = (ways[0] + ways[1]) / 2
        exactly(loss, expected)
        learned = [p for p in clip.parameters() if p.requires_grad]
        exactly(*(torch.autograd.grad(x, learned, retain_graph=True) for x in (loss, expected)))
        assert any(same_former(i, m) for i in range(8) for m in range(len(former))) == (step > 0)
        former.extend(
            {"image": keys["image"][i].detach(), "text": keys["text"][i].detach(), "ids": ids[i]} for i in range(8)
        )
        learn(clip, outputs, loss)
        for side, other in copies.items():
            for own, followed in zip(other.parameters(), clip.encoder.embedder(side).parameters(), strict=True):
                own.data = momentum * own.data + (1 - momentum) * followed.data


def test_before_the_start_the_loss_is_that_without_a_queue(make_clip, batch):
    plain, queued = make_clip(None), make_clip(QueueConfig(size=8, start=2))
    queued.load_state_dict(plain.state_dict(), strict=False)
    for step, one in enumerate(batches(batch, 4)):
        outputs = [method.outputs(one) for method in (plain, queued)]
        losses = [method.loss(of, STEP).value for method, of in zip((plain, queued), outputs, strict=True)]
        assert torch.isclose(*losses, rtol=1e-12) == (step < 2)
        for method, of, loss in zip((plain, queued), outputs, losses, strict=True):
            learn(method, of, loss)
        plain.load_state_dict(queued.state_dict(), strict=False)


def test_extra_captions_and_all_dimensions_go_with_a_queue(make_clip, batch):
    settings = {"matryoshka": MatryoshkaConfig(dims=[3]), "extra_texts": 3, "temperature": 0.3}
    clip = make_clip(QueueConfig(size=8, momentum=0.5), **settings)
    first, second = batches(batch, 2)
    outputs = clip.outputs(first)
    learn(clip, outputs, clip.loss(outputs, STEP).value)
    second.extra["negatives"] = {"input_ids": torch.randn(3, 4).double()}
    second.extra_ids["negatives"] = torch.tensor([[100, 4], [101, 6], [102, 50]])
    views = clip.outputs(second)
    assert not views.keys["negatives"].requires_grad
    former, loss = {name: rows.clone() for name, rows in clip.queue.contents().items()}, 0
    for cut in (slice(None), slice(3)):
        ids = torch.cat([views.rows.extra_ids["negatives"], former["ids"]])
        texts = Negatives(torch.cat([views.keys["negatives"], former["text"]])[:, cut], ids)
        options = {"ids": second.ids, "symmetric": False}
        image, text, key_image, key_text = (
            of[side][:, cut] for of in (views.embeddings, views.keys) for side in clip.sides
        )
        loss += info_nce(image, key_text, clip.temperature, negatives=texts, **options) / 2
        images = Negatives(former["image"][:, cut], former["ids"])
        loss += info_nce(text, key_image, clip.temperature, negatives=images, **options) / 2
    exactly(clip.loss(clip.project(views), STEP).value, loss)


def test_the_loss_changes_nothing_and_only_training_asks_the_copy(make_clip, batch):
    clip = make_clip(QueueConfig(size=8, momentum=0.5)).eval()
    batch = next(batches(batch, 1))
    assert clip.outputs(batch).keys == {}
    clip.train()
    views = clip.outputs(batch)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    assert clip.loss(views, STEP).value == clip.loss(views, STEP).value
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())
    clip.after_update(Outputs.of_batches([views.detached(), views.detached()]), STEP)  # two batches of one step
    assert (int(clip.queue.pushed), int(clip.queue.steps)) == (16, 1)
    image, text = (views.embeddings[side] for side in clip.sides)
    assert clip.metrics(views)["accuracy"] == batch_accuracy(image, text, ids=batch.ids)

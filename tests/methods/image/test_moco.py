"""MoCo as a method: its loss against the paper's, its queue, its copy, and the groups of its batch statistics."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from mmcl.losses import queue_info_nce
from mmcl.methods import Outputs, Step
from mmcl.methods.image.moco import Moco, MocoConfig
from mmcl.runtime.errors import MmclError

from .settings import SETTINGS, STEP


def test_queries_are_compared_with_their_keys_and_the_queue(make, batch):
    moco = make(Moco)
    outputs = moco.project(moco.outputs(batch))
    queue = moco.queue.contents()["key"].clone()
    assert queue.shape == (10, 4)
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(10))  # at random at first
    expected = queue_info_nce(outputs.embeddings["query"], outputs.keys["key"], queue, 0.2)
    torch.testing.assert_close(moco.loss(outputs, STEP).value, expected)
    assert moco.compared_with() == "10 queued negatives per query"


def test_the_keys_of_six_rows_wrap_around_a_queue_of_ten(make, batch):
    moco = make(Moco)
    pushed = [*moco.queue.contents()["key"].clone()]
    for number in range(4):
        outputs = moco.project(moco.outputs(batch)).detached()
        moco.after_update(outputs, Step(number, 4))
        pushed += F.normalize(outputs.keys["key"], dim=1)
        stored = moco.queue.contents()["key"]
        expected = {tuple(key.tolist()) for key in torch.stack(pushed[-10:])}
        assert {tuple(key.tolist()) for key in stored} == expected


def test_the_batches_of_an_accumulated_step_are_all_queued_and_the_copy_follows_once(make, batch):
    moco = make(Moco)
    own, copied = (part.tower.net[0].weight for part in (moco.encoder.embedder("image"), moco.momentum.parts["image"]))
    before = copied.clone()
    with torch.no_grad():
        own.add_(1.0)
    parts = [moco.project(moco.outputs(part)).detached() for part in batch.split([3, 3])]
    moco.after_update(Outputs.of_batches(parts), STEP)
    assert int(moco.queue.pushed) == 16
    torch.testing.assert_close(copied, 0.9 * before + 0.1 * own)


def test_a_query_and_its_key_have_statistics_of_other_rows(make, batch):
    moco = make(Moco)  # two groups of three rows
    net = copy.deepcopy(moco.encoder.embedder("image"))
    outputs = moco.outputs(batch)
    inputs = moco.view_inputs(batch)
    for name, found, groups in (
        ("query", outputs.embeddings["query"], ([0, 1, 2], [3, 4, 5])),
        ("key", outputs.keys["key"], ([0, 2, 4], [1, 3, 5])),
    ):
        for rows in groups:
            torch.testing.assert_close(found[rows], net(pixels=inputs[name]["pixels"][rows]))


def test_an_image_s_own_former_key_is_no_negative_of_it(make, batch):
    moco = make(Moco, queue=6)
    outputs = moco.project(moco.outputs(batch)).detached()
    moco.after_update(outputs, STEP)  # the queue holds the keys of these rows, and nothing else
    keys = F.normalize(outputs.keys["key"], dim=1)
    losses, nearest = [], []
    for row, query in enumerate(F.normalize(outputs.embeddings["query"], dim=1)):
        scores = torch.cat([keys[row : row + 1], keys[:row], keys[row + 1 :]]) @ query / 0.2
        losses.append(-scores.log_softmax(0)[0])
        nearest.append(bool(scores.argmax() == 0))
    torch.testing.assert_close(moco.loss(outputs, STEP).value, torch.stack(losses).mean())
    assert moco.metrics(outputs)["accuracy"] == pytest.approx(sum(nearest) / 6)


def test_groups_of_single_rows_are_refused(make):
    with pytest.raises(MmclError, match=r"method.statistics_groups: 4 groups of training.batch_size 6 have too few"):
        make(Moco, statistics_groups=4)


def test_the_paper_s_settings():
    v2 = MocoConfig()
    assert (v2.temperature, v2.momentum, v2.queue, v2.projector.hidden) == (0.2, 0.999, 65536, [2048])
    v1 = MocoConfig(temperature=0.07, projector={"hidden": []})
    assert (v1.projector.dim, v1.projector.norm) == (128, "none")
    assert SETTINGS[Moco].momentum == 0.9

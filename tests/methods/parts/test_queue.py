"""Queues of former keys, against explicit lists of them and lightly."""

from __future__ import annotations

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mmcl.config.load import load_config
from mmcl.losses import Negatives, info_nce
from mmcl.methods.image_text.clip import ClipConfig
from mmcl.methods.parts.queue import MemoryQueue, QueueConfig
from mmcl.methods.text.simcse import SimcseConfig
from mmcl.runtime.errors import MmclError


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [1, 5, 2, 7, 4], [20, 3], [7, 7], [2]])
def test_a_queue_is_a_list_of_the_newest_rows(sizes):
    queue, expected = MemoryQueue(7, {"a": 2, "b": 3}, columns=2), deque(maxlen=7)
    number = 0
    for size in sizes:
        rows = torch.arange(number, number + size)
        number += size
        queue.push({"a": rows[:, None].expand(-1, 2), "b": -rows[:, None].expand(-1, 3), "ids": rows[:, None] + 1000})
        expected.extend(rows.tolist())
        former = queue.contents()
        assert queue.filled == len(expected)
        order = torch.arange(queue.filled) if queue.filled < 7 else (torch.arange(7) + queue.next) % 7  # oldest first
        assert former["a"][order][:, 0].tolist() == list(expected)
        assert torch.equal(former["b"][:, 2], -former["a"][:, 0])
        assert torch.equal(former["ids"][:, 1], 1000 + former["a"][:, 1].long())


def test_a_queue_gives_nothing_before_its_start_and_holds_then_what_came_before():
    queue = MemoryQueue(4, {"a": 1}, columns=1, start=2)
    rows = {"a": torch.ones(1, 1), "ids": torch.zeros(1, 1, dtype=torch.long)}
    assert queue.contents() == {}
    queue.push(rows)
    assert queue.contents() == {}
    queue.push(rows)
    assert len(queue.contents()["a"]) == 2
    with pytest.raises(ValueError, match="1 row or more, not 0"):
        MemoryQueue(0, {}, columns=1)


def test_a_queue_holds_and_gives_what_lightly_s_memory_bank_does():
    bank = pytest.importorskip("lightly.models.modules.memory_bank")
    theirs, ours = bank.MemoryBankModule((12, 5)), MemoryQueue(12, {"a": 5}, columns=1)
    torch.manual_seed(0)
    for _ in range(8):
        batch = torch.randn(4, 5)
        theirs(batch, update=True)
        ours.push({"a": batch, "ids": torch.zeros(4, 1, dtype=torch.long)})
    assert torch.equal(ours.contents()["a"], theirs.bank)


def test_a_queue_with_info_nce_is_moco_s_loss_as_lightly_computes_it():
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.1, memory_bank_size=(12, 5))
    torch.manual_seed(0)
    queue = MemoryQueue(12, {"key": 5}, columns=1)
    for step in range(6):
        query, key = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
        theirs = loss(query, key)
        if step >= 3:  # its bank starts with random vectors
            former = Negatives(queue.contents()["key"])
            rows = [
                info_nce(q[None], k[None], 0.1, negatives=former, symmetric=False)
                for q, k in zip(query, key, strict=True)
            ]
            ours = torch.stack(rows).mean()  # row by row: MoCo has no negatives within the batch
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(*(torch.autograd.grad(x, query)[0] for x in (ours, theirs)))
        queue.push({"key": F.normalize(key, dim=1), "ids": torch.zeros(4, 1, dtype=torch.long)})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "clip", "queue": {"size": 0}}, r"'method\.queue\.size' is 0: input should be greater than or equal"),
        (
            {"name": "clip", "queue": {"momentum": 1.0}},
            r"'method\.queue\.momentum' is 1\.0: input should be less than 1",
        ),
        ({"name": "clip", "momentum": 0.9}, r"unknown key 'method\.momentum'"),
        ({"name": "siglip", "queue": {}}, r"unknown key 'method\.queue'"),
    ],
)
def test_mistakes_are_reported_in_one_line(method, message):
    config = {"method": method, "data": {"train": {"source": "x"}}, "model": {"dim": 4}}
    with pytest.raises(MmclError, match=message) as caught:
        load_config(config)
    assert "\n" not in str(caught.value)


def test_a_queue_is_off_unless_asked_for():
    assert ClipConfig().queue is None
    assert SimcseConfig(queue={}).queue == QueueConfig(size=16384, momentum=None, start=0)
    with pytest.raises(ValidationError):
        QueueConfig(start=-1)

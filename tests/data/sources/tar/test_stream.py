"""The order of samples: every one once an epoch, and the same order when it is taken up in the middle."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import mmcl.data.sources.tar.stream as module
from mmcl.data.sources.tar.read import read_shard
from mmcl.data.sources.tar.stream import Mixture, Order, SampleError, ShardIterator
from mmcl.data.sources.tar.write import write_shards
from mmcl.runtime.errors import MmclError


@pytest.fixture
def shards(tmp_path):
    """Seven shards of 1 to 13 samples: 49 in all."""
    return make_shards(tmp_path, [1 + 2 * n for n in range(7)])


def make_shards(folder, sizes):
    paths = []
    for number, size in enumerate(sizes):
        (path,) = write_shards(({"txt": f"{number}/{n}"} for n in range(size)), folder / "one", per_shard=10**6)
        paths.append(path.rename(folder / f"{number:02d}.tar"))
    return [str(path) for path in paths]


def text(sample):
    return sample.read("txt").decode()


def take(iterator, count):
    return [(loaded, epoch) for _, loaded, epoch in (iterator.next() for _ in range(count))]


@pytest.mark.parametrize("block", [1, 4, 1000])
@pytest.mark.parametrize("slots", [1, 3])
def test_every_sample_comes_once_an_epoch_in_a_new_order(shards, block, slots):
    epochs = [[], [], []]
    for slot in range(slots):
        iterator = ShardIterator(shards, text, Order(5, slot, slots, block))
        while iterator.cursor["epoch"] < 3:
            loaded, epoch = take(iterator, 1)[0]
            epochs[epoch].append(loaded)
    everything = sorted(text(sample) for shard in shards for sample in read_shard(shard))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert all(a != b for a, b in pairwise(epochs))


def test_a_block_is_a_permutation_of_consecutive_samples(shards):
    order = Order(0, block=10)
    iterator = ShardIterator(shards, text, order)
    epoch = [loaded for loaded, _ in take(iterator, 49)]
    plain = [text(sample) for shard in order.deal(shards, 0) for sample in read_shard(shard)]
    for start in range(0, 49, 10):
        assert sorted(epoch[start : start + 10]) == sorted(plain[start : start + 10])
        assert epoch[start : start + 10] != plain[start : start + 10]


@pytest.mark.parametrize("block", [1, 6, 7, 49, 1000])
def test_a_walk_goes_on_where_it_stood_after_any_sample(shards, block):
    order = Order(1, block=block)
    full = take(ShardIterator(shards, text, order), 120)
    iterator = ShardIterator(shards, text, order)
    for taken in range(0, 105, 3):
        resumed = ShardIterator(shards, text, order, cursor=json.loads(json.dumps(iterator.cursor)))
        assert take(resumed, 9) == full[taken : taken + 9]
        take(iterator, 3)


def test_finished_shards_are_not_opened_again_and_at_most_one_block_is_read_again(shards, monkeypatch):
    order = Order(2, block=5)
    dealt = order.deal(shards, 0)
    before = np.cumsum([sum(1 for _ in read_shard(shard)) for shard in dealt])
    iterator = ShardIterator(shards, text, order)
    opened = []
    monkeypatch.setattr(module, "read_shard", lambda shard, wanted: opened.append(shard) or read_shard(shard, wanted))
    for taken in range(49):
        opened.clear()
        take(ShardIterator(shards, text, order, cursor=iterator.cursor), 1)
        finished = {shard for shard, end in zip(dealt, before, strict=True) if end <= taken // 5 * 5}
        assert finished.isdisjoint(opened)
        monkeypatch.undo()
        take(iterator, 1)
        monkeypatch.setattr(
            module, "read_shard", lambda shard, wanted: opened.append(shard) or read_shard(shard, wanted)
        )


def refuse_odd(sample):
    if int(sample.key) % 2:
        raise SampleError("text", "odd")
    return text(sample)


def test_what_cannot_be_used_is_reported_once_a_pass_whether_resumed_or_not(shards, tmp_path):
    damaged = tmp_path / "07.tar"
    damaged.write_bytes(b"no tar")
    cut = tmp_path / "06.tar"
    cut.write_bytes(cut.read_bytes()[: 1024 * 8 + 513])
    everything = [*shards, str(damaged)]
    order = Order(3, block=6)
    iterator = ShardIterator(everything, refuse_odd, order)
    steps = []
    while iterator.cursor["epoch"] < 2:
        loaded = take(iterator, 1)
        steps.append((loaded, list(iterator.problems), iterator.cursor))
        iterator.problems.clear()
    reported = Counter(problem["id"] for _, problems, _ in steps for problem in problems)
    assert set(reported.values()) == {2}
    assert {"07.tar", "06.tar:000000008"} <= set(reported)
    assert len(reported) == 2 + sum(int(s.key) % 2 for shard in shards[:6] for s in read_shard(shard)) + 4
    for number in range(0, len(steps) - 1, 2):
        resumed = ShardIterator(everything, refuse_odd, order, cursor=steps[number][2])
        assert (take(resumed, 1), resumed.problems, resumed.cursor) == steps[number + 1]


def test_a_pass_without_any_use_ends_and_fail_stops_at_the_first(shards):
    def refuse(sample):
        raise SampleError("image", "broken")

    iterator = ShardIterator(shards, refuse, Order(0))
    with pytest.raises(MmclError, match=r"7 in all.*image: broken"):
        iterator.next()
    assert len(iterator.problems) == 49
    for place in ({"epoch": 0, "block": 0, "shard": 3, "sample": 0, "taken": 0}, {"epoch": 4}):
        with pytest.raises(MmclError, match="no sample that can be used"):
            ShardIterator(shards, refuse, Order(0), cursor=place).next()
    with pytest.raises(MmclError, match=r"0\d\.tar:\d+: image: broken; mend it"):
        ShardIterator(shards, refuse, Order(0), fail=True).next()


def test_mixing_keeps_to_the_weights_whatever_is_skipped_and_goes_on_where_it_stood(tmp_path):
    a, b = (make_shards(tmp_path / name, [30, 30, 30]) for name in "ab")

    def mixture(position=None):
        position = position or {"drawn": 0, "walks": [None, None]}
        order = Order(7, block=8)
        iterators = [
            ShardIterator(shards, load, order, pool=pool, cursor=position["walks"][pool])
            for pool, (shards, load) in enumerate([(a, lambda s: ("a", text(s))), (b, lambda s: ("b", refuse_odd(s)))])
        ]
        return Mixture(iterators, [3.0, 1.0], order, position["drawn"])

    stream = mixture()
    full = take(stream, 4000)
    share = sum(loaded[0] == "b" for loaded, _ in full) / 4000
    assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))
    tally = Counter(loaded for loaded, _ in full)
    for kind, size in (("a", 90), ("b", 45)):
        counts = [count for (name, _), count in tally.items() if name == kind]
        assert len(counts) == size
        assert max(counts) - min(counts) <= 1  # every source goes through epochs of its own
    stream = mixture()
    for taken in range(0, 1400, 70):
        resumed = mixture(json.loads(json.dumps(stream.position)))
        assert take(resumed, 10) == full[taken : taken + 10]
        take(stream, 70)

"""Batches of tar shards: every sample once an epoch, whatever is killed in between, and what tables would give."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmcl.data.batches.views import Extra
from mmcl.data.identity import mix, stable_hash
from mmcl.data.sources.tar.names import shard_name
from mmcl.data.sources.tar.read import read_shard
from mmcl.data.sources.tar.write import write_shards
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

from .streams import all_names, assert_equal, make_feed, png, take


def by_epoch(names, seeds, folder, epochs=12):
    """Epoch to the samples read in it, which their seeds tell."""
    known = all_names(folder)
    hashes = torch.tensor([stable_hash(name) for name in known])
    of = {
        (name, seed): epoch
        for epoch in range(epochs)
        for name, seed in zip(known, mix(hashes, 0, epoch).tolist(), strict=True)
    }
    read = {}
    for name, seed in zip(names, seeds, strict=True):
        read.setdefault(of[name, seed], []).append(name)
    return read


def test_two_ranks_of_two_workers_stopped_at_random_read_every_sample_once_an_epoch(
    config, method, shards, monkeypatch
):
    draws = random.Random(0)
    names, seeds, finished = [], [], []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        feed = make_feed(config, method, "data.workers=2")
        start, position = 0, None
        while position is None or min(place["walks"][0]["epoch"] for place in position["workers"]) < 3:
            batches = feed.batches(start, 10**6, json.loads(json.dumps(position)))
            for _ in range(draws.randrange(1, 60)):
                batch = next(batches)
                assert len(batch.names) == 4
                names += batch.names
                seeds += batch.seeds.tolist()
                start, position = start + 1, batch.position
            batches.close()  # with batches on their way
        finished += [place["walks"][0]["epoch"] for place in position["workers"]]
    read = by_epoch(names, seeds, shards)
    for epoch in range(min(finished)):
        assert sorted(read[epoch]) == all_names(shards)
    assert max(Counter(zip(names, seeds, strict=True)).values()) == 1


def read_and_die(rank, config, method, folder, stop):
    """One of two processes: go on from what is noted in ``folder``, note every batch, and fall dead after ``stop``."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/{stop}", rank=rank, world_size=2)
    path = folder / f"read-{rank}.jsonl"
    lines = [json.loads(line) for line in path.open()] if path.exists() else []
    feed = make_feed(config, method, "data.workers=2")
    with path.open("a") as file:
        position = lines[-1]["position"] if lines else None
        for number, batch in enumerate(feed.batches(len(lines), 10**6, position), len(lines) + 1):
            reported = {"names": batch.names, "seeds": batch.seeds.tolist(), "position": batch.position}
            reported["workers"] = [process.pid for process in multiprocessing.active_children()]
            print(json.dumps(reported), file=file, flush=True)
            if number == stop + rank:
                os.kill(os.getpid(), signal.SIGKILL)


def test_two_processes_killed_and_started_again_read_every_sample_once_an_epoch(config, method, shards, tmp_path):
    for stop in (13, 60):
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=read_and_die, args=(rank, config, method, tmp_path, stop)) for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=120)
        assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
    reported = [[json.loads(line) for line in (tmp_path / f"read-{rank}.jsonl").open()] for rank in range(2)]
    assert [len(lines) for lines in reported] == [60, 61]
    read = by_epoch(
        [name for lines in reported for line in lines for name in line["names"]],
        [seed for lines in reported for line in lines for seed in line["seeds"]],
        shards,
    )
    finished = min(place["walks"][0]["epoch"] for lines in reported for place in lines[-1]["position"]["workers"])
    assert finished >= 2
    for epoch in range(finished):
        assert sorted(read[epoch]) == all_names(shards)
    workers = {pid for lines in reported for line in lines for pid in line["workers"]}
    assert len(workers) == 8
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # they notice that their parent died
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resumed_batches_are_those_of_the_uninterrupted_run(config, method, workers):
    feed = make_feed(config, method, f"data.workers={workers}", "data.prefetch=3")
    whole = take(feed, 0, 40)
    for start in (1, 14, 27) if workers else range(1, 30, 3):
        resumed = take(feed, start, start + 9, whole[start - 1].position)
        for batch, expected in zip(resumed, whole[start : start + 9], strict=True):
            assert_equal(batch, expected)


def test_a_thread_makes_what_one_process_makes_and_another_seed_gives_another_order(config, method):
    batches = [take(make_feed(config, method, f"data.workers={workers}"), 0, 20) for workers in (0, 1)]
    for a, b in zip(*batches, strict=True):
        assert_equal(a, b)
    other = take(make_feed(config, method, "seed=1"), 0, 20)
    assert [batch.names for batch in other] != [batch.names for batch in batches[0]]


def test_items_and_identities_are_those_of_a_table_of_the_same_samples(config, method, shards, tmp_path):
    rows = {}
    for path in sorted(shards.glob("*.tar")):
        for sample in read_shard(str(path)):
            (tmp_path / f"{sample.key}.png").write_bytes(sample.read("png"))
            rows[sample.name] = {"image": f"{sample.key}.png", "text": json.loads(sample.read("json"))["caption"]}
    table_path = tmp_path / "rows.jsonl"
    table_path.write_text("".join(json.dumps({"id": name, **row}) + "\n" for name, row in rows.items()))
    table = make_feed(config, method, f"data.train.source={table_path}", augmented=False)
    pixels, captions = {}, {}
    for batch in table.batches(0, 20 * len(table)):
        for row, name in enumerate(table.names(batch)):
            pixels[name] = (batch.ids[row, 0].item(), batch.inputs["image"]["pixels"][row])
            ids = batch.inputs["text"]["input_ids"][row][batch.inputs["text"]["attention_mask"][row] == 1]
            captions[batch.ids[row, 1].item()] = (name, ids.tolist())
    chosen = Counter()
    for batch in take(make_feed(config, method), 0, 39):
        for row, name in enumerate(batch.names):
            identity, image = pixels[name]
            assert batch.ids[row, 0].item() == identity
            assert torch.equal(batch.inputs["image"]["pixels"][row], image)
            caption = batch.ids[row, 1].item()
            ids = batch.inputs["text"]["input_ids"][row][batch.inputs["text"]["attention_mask"][row] == 1]
            assert captions[caption] == (name, ids.tolist())
            first = method.encoder.embedder("text").processor.identities(rows[name]["text"][:1])
            chosen[caption == int(first[0])] += 1
    assert min(chosen.values()) > 100  # of 312: either caption, by the sample's seed


def test_captions_are_changed_only_where_the_config_says_so_and_keep_their_identity(config, method):
    plain, crop = [], ["text_augmentation.drop=0.5"]
    for overrides, augmented in (([], True), (crop, False), (crop, True)):
        plain.append(take(make_feed(config, method, *overrides, augmented=augmented), 0, 5))
    for a, b, c in zip(*plain, strict=True):
        assert_equal(a, b)
        assert torch.equal(a.ids, c.ids)
        assert c.inputs["text"]["attention_mask"].sum() < a.inputs["text"]["attention_mask"].sum()


@pytest.fixture
def corrupt(tmp_path):
    """Two shards of 50 samples, of whose images 60% are not readable; one caption is missing and one blank."""
    paths = []
    for shard in range(2):
        rows = [{"png": b"\x89PNG no" if n % 5 < 3 else png(n), "txt": f"caption {n}"} for n in range(50)]
        if shard:
            del rows[4]["txt"]
            rows[9]["txt"] = "  "
        folder = tmp_path / f"{shard}"
        paths.append(write_shards(rows, folder)[0].rename(tmp_path / f"{shard}.tar"))
        folder.rmdir()
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_corrupt_images_goes_on_and_names_each(config, method, corrupt, workers):
    feed = make_feed(config, method, f"data.train.source={corrupt}", f"data.workers={workers}")
    assert feed.samples == 100
    assert len(feed) == 12
    batches = take(feed, 0, 3 * len(feed))
    reported = {(problem["id"], problem["role"]): problem["reason"] for batch in batches for problem in batch.problems}
    bad = {(f"{shard}.tar:{n:09d}", "image") for shard in (0, 1) for n in range(50) if n % 5 < 3}
    assert reported.keys() == bad | {("1.tar:000000004", "text"), ("1.tar:000000009", "text")}
    assert reported["1.tar:000000009", "text"] == "no text"
    assert reported["1.tar:000000004", "text"] == "no txt;json.caption;json.text; the sample has png"
    read = by_epoch(
        [name for batch in batches for name in batch.names],
        [seed for batch in batches for seed in batch.seeds.tolist()],
        corrupt,
    )
    good = sorted(set(all_names(corrupt)) - {name for name, _ in reported})
    assert len(good) == 38
    assert sorted(read[0]) == sorted(read[1]) == good


def test_a_mistake_met_by_a_worker_arrives_as_itself_and_nothing_is_left_running(config, method, corrupt):
    before = set(multiprocessing.active_children())
    source = f"data.train.source={corrupt}"
    feed = make_feed(config, method, source, "data.workers=2", "data.on_error=fail")
    with pytest.raises(MmclError, match=r"^\d\.tar:\d+: image: .*set data\.on_error to skip$"):
        take(feed, 0, 9)
    feed = make_feed(config, method, "data.workers=2", "data.prefetch=4")
    batches = feed.batches(0, 10**6)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert set(multiprocessing.active_children()) <= before


def test_a_source_of_which_nothing_can_be_used_is_refused(config, method, tmp_path):
    write_shards(({"png": b"broken", "txt": "a"} for _ in range(30)), tmp_path, per_shard=10)
    feed = make_feed(config, method, f"data.train.source={tmp_path}")
    with pytest.raises(MmclError, match="a pass gave no sample that can be used"):
        take(feed, 0, 1)
    with pytest.raises(MmclError, match=r"no sample has cls for 'text'; they have png, txt; .*data\.columns\.text"):
        make_feed(config, method, f"data.train.source={tmp_path}", "data.columns.text=cls")


def test_commands_are_read_as_files_are_and_must_say_how_many_samples_they_give(config, method, shards, monkeypatch):
    piped = f"data.train.source=pipe:cat {shards}/{{00..19}}.tar"
    with pytest.raises(MmclError, match="--allow-pipe"):
        make_feed(config, method, piped, "data.train.samples=50")
    monkeypatch.setattr("mmcl.data.sources.tar.shards._pipes_allowed", True)
    with pytest.raises(MmclError, match=r"data\.train\.samples"):
        make_feed(config, method, piped)
    feed = make_feed(config, method, piped, "data.train.samples=50")
    assert len(feed) == 6
    batches = take(feed, 0, 13)
    for a, b in zip(batches, take(make_feed(config, method), 0, 13), strict=True):
        assert_equal(a, b)
    for batch, expected in zip(take(feed, 8, 13, batches[7].position), batches[8:], strict=True):
        assert_equal(batch, expected)


def test_what_a_stream_cannot_do_is_refused(config, method, shards, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(type(method), "reading", replace(method.reading, extra={"x": Extra("text", 9)}))
        with pytest.raises(MmclError, match="extra_texts"):
            make_feed(config, method)
    with pytest.raises(MmclError, match=r"distinct batches need a table, .*; set data\.distinct to false"):
        make_feed(config, method, "data.distinct=true")
    with pytest.raises(MmclError, match="no splits"):
        make_feed(config, method, "data.train.split=train")
    with pytest.raises(MmclError, match="a separator is of CSV files"):
        make_feed(config, method, "data.train.separator=;")
    with pytest.raises(MmclError, match="20 shards cannot be dealt over 1 processes × 21 workers"):
        make_feed(config, method, "data.workers=21")
    feed = make_feed(config, method)
    (batch,) = take(feed, 0, 1)
    with pytest.raises(MmclError, match="launch it as it was"):
        make_feed(config, method, "data.workers=2").batches(1, 2, batch.position)
    with pytest.raises(ValueError, match="needs the position"):
        feed.batches(1, 2)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(MmclError, match="cannot be divided evenly"):
        make_feed(config, method)


def test_a_feed_says_what_it_reads(config, method, shards):
    feed = make_feed(config, method, "training.batch_size=30")
    assert (feed.samples, len(feed), feed.extra_count, feed.problems()) == (100, 3, 0, [])
    assert feed.name == str(shards)
    (batch,) = take(feed, 0, 1)
    assert feed.names(batch) == batch.names
    assert batch.names[0].split(":")[0] in {shard_name(str(path)) for path in shards.glob("*.tar")}
    assert batch.rows.tolist() == list(range(30))
    assert feed.fingerprint == make_feed(config, method).fingerprint
    assert feed.fingerprint != make_feed(config, method, f"data.train.source={shards}/{{00..18}}.tar").fingerprint

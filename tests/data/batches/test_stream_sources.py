"""Several sources of tar shards as one stream, and other models that read it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmcl.config import load_config
from mmcl.data.sources.tar.read import read_shard
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.build import build_method

from .streams import all_names, assert_equal, make_feed, make_shards, take


def test_weights_mix_sources_and_without_them_each_sample_comes_once(config, method, shards, tmp_path):
    other = make_shards(tmp_path / "other", [10, 10, 10], first=1000)
    mixed = config | {"data": config["data"] | {"mix": [{"source": str(other)}]}}
    feed = make_feed(mixed, method)
    assert feed.samples == 130
    names = [name for batch in take(feed, 0, 17) for name in batch.names]
    assert set(names[:130]) == {*all_names(shards), *all_names(other)}
    weights = ["data.train.weight=1"]
    with pytest.raises(MmclError, match="no weight and other sources have"):
        make_feed(mixed, method, *weights)
    weighted = mixed | {"data": mixed["data"] | {"mix": [{"source": str(other), "weight": 3, "samples": 60}]}}
    feed = make_feed(weighted, method, *weights)
    assert feed.samples == 160
    batches = take(feed, 0, 100)
    share = np.mean([int(name.split(":")[1]) >= 1000 for batch in batches for name in batch.names])
    assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 800) ** 0.5)
    for batch, expected in zip(take(feed, 41, 60, batches[40].position), batches[41:60], strict=True):
        assert_equal(batch, expected)


def test_a_batch_may_have_samples_of_one_source_alone_which_is_the_same_for_all_processes(
    config, method, shards, tmp_path, monkeypatch
):
    other = make_shards(tmp_path / "other", [15, 15], first=1000)
    mixed = config | {"data": config["data"] | {"mix": [{"source": str(other)}], "batches": "one_source"}}
    batches = take(make_feed(mixed, method), 0, 200)
    of_other = [{int(name.split(":")[1]) >= 1000 for name in batch.names} for batch in batches]
    assert all(len(found) == 1 for found in of_other)
    share = np.mean([found == {True} for found in of_other])
    assert share == pytest.approx(30 / 130, abs=4 * (30 / 130 * 100 / 130 / 200) ** 0.5)  # as many as they have samples
    resumed = take(make_feed(mixed, method), 41, 60, batches[40].position)
    for batch, expected in zip(resumed, batches[41:60], strict=True):
        assert_equal(batch, expected)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        ours = take(make_feed(mixed, method), 0, 50)
        assert [{int(name.split(":")[1]) >= 1000 for name in batch.names} for batch in ours] == of_other[:50]
    weighted = mixed | {"data": mixed["data"] | {"mix": [{"source": str(other), "weight": 3}]}}
    batches = take(make_feed(weighted, method, "data.train.weight=1"), 0, 200)
    share = np.mean([int(batch.names[0].split(":")[1]) >= 1000 for batch in batches])
    assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 200) ** 0.5)


def test_another_model_reads_the_same_items_in_its_own_way_and_unchanged(config, method, shards, tmp_path, monkeypatch):
    small = {"data.image": {"size": 16}, "model.text": {"max_tokens": 12, "tokenizer": {"vocab_size": 30}}}
    towers = {"image": {"name": "timm:resnet10t", "args": {"channels": [4, 4, 4, 4], "stem_width": 4}}}
    towers["text"] = {"name": "scratch", "layers": 1, "width": 8, "heads": 1, **small["model.text"]}
    data = {"train": {"source": str(shards)}, "image": small["data.image"]}
    other = build_method(load_config({"data": data, "model": {"dim": 8, **towers}}), tmp_path).encoder
    captions, images = {}, {}
    identities = method.encoder.embedder("text").processor.identities
    for path in sorted(shards.glob("*.tar")):
        for sample in read_shard(str(path)):
            images[sample.name] = sample.read("png")
            texts = json.loads(sample.read("json"))["caption"]
            captions |= dict(zip(identities(texts).tolist(), texts, strict=True))
    monkeypatch.setattr(type(method), "reading", replace(method.reading, references={"guide": other}))
    feed = make_feed(config, method, "text_augmentation.drop=0.5")
    image, text = (other.embedder(modality).processor for modality in ("image", "text"))
    for batch in take(feed, 0, 5):
        read = batch.references["guide"]
        for row, name in enumerate(batch.names):
            assert np.array_equal(read["image"]["pixels"][row].numpy(), image.prepare(images[name]).pixels)
            (expected,), _ = text.tokenize([captions[batch.ids[row, 1].item()]])
            tokens = text.collate([expected])["input_ids"][0]
            assert torch.equal(read["text"]["input_ids"][row, : len(tokens)], tokens)
        with torch.no_grad():
            assert other.embedder("text")(**read["text"]).isfinite().all()
    (plain,) = take(make_feed(config, method, augmented=False), 0, 1)
    assert plain.references == {}

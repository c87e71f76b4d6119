"""Tar shards of numbered samples, and what a feed makes of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmcl.config import load_config
from mmcl.data.batches.feed import open_feed
from mmcl.data.sources.tar.read import read_shard
from mmcl.data.sources.tar.write import write_shards

SIZES = [1, 9, 3, 6, 2, 11, 4, 4, 7, 5, 3, 8, 1, 6, 10, 2, 5, 4, 6, 3]  # of 20 shards: 100 samples


def png(number):
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def make_shards(folder, sizes=SIZES, first=0):
    """A shard of each size, named and filled by its number."""
    folder.mkdir()
    number = first
    for shard, size in enumerate(sizes):
        rows = [
            {"__key__": f"{n:04d}", "png": png(n), "json": {"caption": [f"{n} {word}" for word in ("one", "two")]}}
            for n in range(number, number + size)
        ]
        number += size
        write_shards(rows, folder / "new", per_shard=10**6)[0].rename(folder / f"{shard:02d}.tar")
    (folder / "new").rmdir()
    return folder


def make_feed(config, method, *overrides, augmented=True):
    config = load_config(config, overrides)
    sources = [config.data.train, *config.data.mix]
    return open_feed(sources, method.reading, config, Path("unused"), augmented=augmented, device=torch.device("cpu"))


def take(feed, start, stop, position=None):
    return list(feed.batches(start, stop, json.loads(json.dumps(position))))


def all_names(folder):
    return sorted(sample.name for path in sorted(folder.glob("*.tar")) for sample in read_shard(str(path)))


def assert_equal(a, b):
    """Bit for bit."""
    assert (a.names, a.position, a.problems) == (b.names, b.position, b.problems)
    for x, y in ((a.ids, b.ids), (a.seeds, b.seeds), (a.rows, b.rows)):
        assert torch.equal(x, y)
    assert a.inputs.keys() == b.inputs.keys()
    for role, inputs in a.inputs.items():
        assert inputs.keys() == b.inputs[role].keys()
        assert all(torch.equal(tensor, b.inputs[role][name]) for name, tensor in inputs.items())

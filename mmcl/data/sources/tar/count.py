"""How many samples tar shards hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmcl.data.sources.tar.names import is_local
from mmcl.data.sources.tar.read import ShardError, read_shard
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file, cache_dir
from mmcl.runtime.progress import progress


def count_samples(shards: Sequence[str], show_progress: bool | None = None) -> int:
    """How many samples local ``shards`` hold, by their headers.

    The numbers are kept in the cache folder ``shards`` for files of the same path, size and time of change. What lies
    behind damage is not counted.

    Raises:
        MmclError: one of the shards is not a local file.
    """
    remote = [shard for shard in shards if not is_local(shard)]
    if remote:
        raise MmclError(f"{remote[0]}: its samples cannot be counted; state how many there are as data.train.samples")
    states = {shard: [stat.st_size, stat.st_mtime_ns] for shard in shards for stat in [Path(shard).stat()]}
    names = hashlib.blake2b(repr(sorted(map(os.path.abspath, shards))).encode(), digest_size=16).hexdigest()
    cache = cache_dir("shards") / f"{names}.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    counts = {shard: known[shard] for shard in states if known.get(shard, [])[:2] == states[shard]}
    if len(counts) < len(states):
        with progress("count samples", len(states), "shards", show_progress) as advance:
            for shard in states.keys() - counts.keys():
                counts[shard] = [*states[shard], _count(shard)]
                advance(1)
        with atomic_file(cache) as beside:
            beside.write_text(json.dumps(counts), encoding="utf-8")
    return sum(counts[shard][2] for shard in shards)


def _count(shard: str) -> int:
    count = 0
    try:
        for _ in read_shard(shard, wanted=()):
            count += 1
    except ShardError:
        pass  # reported when the shard is read for training
    return count

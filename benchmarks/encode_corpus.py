"""What does a corpus cost to encode, and what does a kill?

python benchmarks/encode_corpus.py                                   a tiny model, a million texts, 20 kills
python benchmarks/encode_corpus.py --rows 50000 --kills 5            in minutes

`mmcl encode` of 10,000 texts and of many, each in a process of its own, whose largest resident memory is printed; of
the many again by two processes at once on one folder; and again, killed by SIGKILL at random moments and given again
until it ends well. The files must be those of the first encode, byte for byte. The texts are those of stream_memory.py,
the model a random BERT of one layer, 32 wide, whose vectors have 384 dimensions.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import report
from stream_memory import DATA, distinct_texts

from mmcl.config.model import HeadConfig, TextTowerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding import Encoder
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers

FEW, DIM = 10_000, 384
BLOCK = 100_000


def tiny_encoder(data: Path) -> Encoder:
    """A BERT of one layer with random weights, and a tokenizer of its texts."""
    torch.manual_seed(0)
    settings = TextTowerConfig(layers=1, width=32, heads=2, pooling="mean", tokenizer={"vocab_size": 2000})
    tokenizer = train_tokenizer(list(distinct_texts(2000, data)), settings.tokenizer, 64)
    processor, tower = build_text_tower(settings, tokenizer)
    return Encoder(Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(), 32, DIM))}, DIM, "tiny")).eval()


def write_table(path: Path, count: int, data: Path) -> None:
    """A table of so many texts, of which a thousandth is empty."""
    schema = pa.schema([("text", pa.string())])
    texts = distinct_texts(count, data)
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, count, BLOCK):
            block = [next(texts) for _ in range(min(BLOCK, count - start))]
            block[7::1000] = [""] * len(block[7::1000])
            file.write_table(pa.table({"text": block}, schema))


def begin(model: Path, table: Path, out: Path, rows: int) -> subprocess.Popen[bytes]:
    """`mmcl encode` in a process of its own, into some thirty shards."""
    command = [sys.executable, "-m", "mmcl", "encode", str(model), str(table), "--out", str(out)]
    command += ["--shard-rows", str(-(-rows // 30))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """The exit code of a process, and the most memory that it held, in MB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024


def undisturbed(model: Path, table: Path, out: Path, count: int, processes: int = 1) -> dict[str, Any]:
    """The time and memory of an encode."""
    start = time.perf_counter()
    found = [ended(process) for process in [begin(model, table, out, count) for _ in range(processes)]]
    seconds = time.perf_counter() - start
    if any(code for code, _ in found):
        sys.exit(f"mmcl encode failed: {found}")
    return {"rows": count, "processes": processes, "seconds": seconds, "peak_mb": max(peak for _, peak in found)}


def killed(model: Path, table: Path, out: Path, count: int, kills: int, seconds: float, seed: int) -> dict[str, Any]:
    """The time of an encode that is killed so often, each time after up to half of what it takes undisturbed."""
    draw, start, struck = random.Random(seed), time.perf_counter(), 0
    while struck < kills:
        process = begin(model, table, out, count)
        time.sleep(draw.uniform(0, seconds / 2))
        os.kill(process.pid, signal.SIGKILL)  # send_signal would take away what is known of one that has ended
        struck += ended(process)[0] == -signal.SIGKILL
        if (out / "manifest.json").exists() and '"complete": true' in (out / "manifest.json").read_text():
            break
    if ended(begin(model, table, out, count))[0]:
        sys.exit("mmcl encode failed after kills")
    return {"kills": struck, "seconds": time.perf_counter() - start}


def contents(folder: Path) -> dict[str, bytes]:
    """The name and content of every file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        model, few, many = folder / "model", folder / "few.parquet", folder / "many.parquet"
        tiny_encoder(asked.data).save(model)
        write_table(few, FEW, asked.data)
        write_table(many, asked.rows, asked.data)
        alone, twice, disturbed = folder / "alone", folder / "twice", folder / "killed"
        rows = [undisturbed(model, few, folder / "few", FEW), undisturbed(model, many, alone, asked.rows)]
        rows.append(undisturbed(model, many, twice, asked.rows, processes=2))
        rows[-1]["same_bytes"] = str(contents(twice) == contents(alone))
        again = killed(model, many, disturbed, asked.rows, asked.kills, rows[1]["seconds"], asked.seed)
        rows.append(
            {"rows": asked.rows, "processes": 1, **again, "same_bytes": str(contents(disturbed) == contents(alone))}
        )
        report(__file__, rows, seed=asked.seed)


if __name__ == "__main__":
    main()

"""What does a corpus cost to encode, and what does a kill?

python benchmarks/encode_corpus.py                                   a tiny model, a million texts, 20 kills
python benchmarks/encode_corpus.py --only memory                     the memory of 10,000 texts and of a million
python benchmarks/encode_corpus.py --rows 50000 --kills 5            in minutes

`mmcl encode` of 10,000 texts and of many, each in a process of its own, whose largest resident memory is printed; of
the many again by two processes at once on one folder; and again, killed by SIGKILL at random moments and given again
until it ends well. The files must be those of the first encode, byte for byte. Each result is written at once; what
would begin after ``--minutes`` is left out, and no kill comes after them. The texts are those of stream_memory.py, the
model a random BERT of one layer, 32 wide, whose vectors have 384 dimensions.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import show, write
from stream_memory import DATA, distinct_texts

from mmcl.config.model import HeadConfig, TextTowerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding import Encoder
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.files import sha256_file

FEW, DIM = 10_000, 384
KILL_WITHIN = 20.0  # seconds
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


def peaks_of(processes: Sequence[subprocess.Popen[bytes]]) -> list[float]:
    """MB of memory that each process held at most, once all have ended.

    Asked of the kernel while they run: what ``wait4`` says counts what the parent held when it forked, too.
    """
    peaks = [0.0] * len(processes)
    while any(process.poll() is None for process in processes):
        for number, process in enumerate(processes):
            with suppress(OSError, StopIteration):  # it has just ended
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                held = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
                peaks[number] = max(peaks[number], held)
        time.sleep(0.1)
    return peaks


def undisturbed(model: Path, table: Path, out: Path, count: int, processes: int = 1) -> dict[str, Any]:
    """The time and memory of an encode."""
    start = time.perf_counter()
    begun = [begin(model, table, out, count) for _ in range(processes)]
    peaks = peaks_of(begun)
    seconds = time.perf_counter() - start
    if any(process.returncode for process in begun):
        sys.exit(f"mmcl encode failed: exit codes {[process.returncode for process in begun]}")
    return {"rows": count, "processes": processes, "seconds": seconds, "peak_mb": max(peaks)}


def killed(model: Path, table: Path, out: Path, count: int, kills: int, until: float, seed: int) -> dict[str, Any]:
    """The time of an encode that is killed so often, each time after up to twenty seconds.

    Once it is complete, it is begun anew for the kills that are left; none comes after ``until``, of
    ``time.monotonic()``.
    """
    draw, start, struck, folders = random.Random(seed), time.perf_counter(), 0, 1
    while struck < kills and time.monotonic() < until:
        process = begin(model, table, out, count)
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, KILL_WITHIN))
        process.kill()
        struck += process.wait() == -signal.SIGKILL
        if process.returncode == 0 and struck < kills:
            shutil.rmtree(out)
            folders += 1
    if begin(model, table, out, count).wait():
        sys.exit("mmcl encode failed after kills")
    return {"rows": count, "processes": 1, "kills": struck, "begun": folders, "seconds": time.perf_counter() - start}


def contents(folder: Path) -> dict[str, str]:
    """The name and the hash of every file."""
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=11)
    parser.add_argument("--only", nargs="+", choices=("memory", "two", "kills"), default=["memory", "two", "kills"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    until, rows = time.monotonic() + 60 * asked.minutes, []

    def measured(row: dict[str, Any]) -> None:
        rows.append(row)
        write(asked.out, rows, seed=asked.seed)
        print(row, flush=True)

    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        model, few, many, alone = folder / "model", folder / "few.parquet", folder / "many.parquet", folder / "alone"
        tiny_encoder(asked.data).save(model)
        write_table(many, asked.rows, asked.data)
        if "memory" in asked.only:
            write_table(few, FEW, asked.data)
            measured(undisturbed(model, few, folder / "few", FEW))
        measured(undisturbed(model, many, alone, asked.rows))
        expected, seconds = contents(alone), rows[-1]["seconds"]
        if "two" in asked.only and time.monotonic() + seconds < until:
            row = undisturbed(model, many, folder / "two", asked.rows, processes=2)
            measured(row | {"same_bytes": str(contents(folder / "two") == expected)})
        if "kills" in asked.only and time.monotonic() + seconds < until:
            row = killed(model, many, folder / "killed", asked.rows, asked.kills, until - seconds, asked.seed)
            measured(row | {"same_bytes": str(contents(folder / "killed") == expected)})
    show(rows)


if __name__ == "__main__":
    main()

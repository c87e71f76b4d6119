"""Does a stream of a million texts take more memory than one of ten thousand?

python benchmarks/stream_memory.py                                     a tiny model, to a million texts
python benchmarks/stream_memory.py --model sample:minilm --streams 10000 25000

The texts are Wikipedia's sentences, over and over, each with its number behind it, so that all are distinct. The model
called tiny is a random BERT of one layer behind MiniLM's own tokenizer: what a stream holds beside the weights is the
same pipeline, and a million texts take minutes, not hours. Every stream runs in a process of its own. What was
measured of other models before stays in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from measure import report
from transformers import BertConfig, BertModel

import mmcl
from mmcl.config.model import HeadConfig
from mmcl.data import samples
from mmcl.data.processors.text import TextProcessor
from mmcl.encoding import Encoder
from mmcl.formats.tokenizers import open_tokenizer
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "wiki_sentences.parquet"
TINY = "tiny"
WIDTH = 32


def tiny_encoder() -> Encoder:
    """A BERT of one layer, 32 wide, with random weights and MiniLM's tokenizer."""
    torch.manual_seed(0)
    tokenizer = open_tokenizer(str(samples.get("minilm")))
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
    net = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes), add_pooling_layer=False)
    processor = TextProcessor(tokenizer, max_tokens=256)
    embedder = TextEmbedder(processor, TextTower(net, processor, pooling="mean"), Head(HeadConfig(), WIDTH, WIDTH))
    return Encoder(Towers({"text": embedder}, WIDTH, TINY)).eval()


def distinct_texts(count: int, data: Path) -> Iterator[str]:
    """As many as asked for; the file's column is all that is held."""
    sentences = pq.read_table(data, columns=["text"]).column("text")
    for number in range(count):
        yield f"{sentences[number % len(sentences)].as_py()} {number}"


def stream(model: str, count: int, data: Path) -> dict[str, Any]:
    """Encode, keep nothing, and tell the most memory that this process ever took, in MB of 2**20 bytes."""
    encoder = tiny_encoder() if model == TINY else mmcl.load(model, dtype="float32")
    start, done = time.monotonic(), 0
    for vectors in encoder.encode_stream(distinct_texts(count, data)):
        done += len(vectors)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"model": model, "texts": done, "texts/s": done / seconds, "peak MB": peak}


def elsewhere(model: str, count: int, data: Path) -> dict[str, Any]:
    """:func:`stream` in another process, whose peak is its own."""
    command = [sys.executable, __file__, "--model", model, "--stream", str(count), "--data", str(data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Measure, print and write ``stream_memory.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY)
    parser.add_argument("--streams", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stream:
        print(json.dumps(stream(given.model, given.stream, given.data)))
        return
    rows = [elsewhere(given.model, count, given.data) for count in given.streams]
    earlier = Path(__file__).with_suffix(".json")
    if earlier.is_file():
        rows = [row for row in json.loads(earlier.read_text())["rows"] if row["model"] != given.model] + rows
    report(__file__, rows, torch=torch.__version__, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()

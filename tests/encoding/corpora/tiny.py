"""A tiny text model, and encodes by it in processes of their own: one that is forked again and again, to be killed, and
one that says how much memory it took."""

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from mmcl.config.model import HeadConfig, TextTowerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.data.sources import open_source
from mmcl.encoding import Encoder, Layout, encode_source
from mmcl.formats.open import open_model
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers

WORDS = ["a", "the", "red", "blue", "big", "small", "dog", "car", "runs", "sits", "over", "under", "now", "then"]


def sentences(count: int, seed: int = 0, words: tuple[int, int] = (1, 12)) -> list[str]:
    draw = random.Random(seed)
    return [f"{' '.join(draw.choices(WORDS, k=draw.randint(*words)))} {n}" for n in range(count)]


def tiny_encoder(dim: int = 16, max_tokens: int = 64) -> Encoder:
    torch.manual_seed(0)
    settings = TextTowerConfig(
        layers=1, width=16, heads=2, pooling="mean", max_tokens=max_tokens, tokenizer={"vocab_size": 80}
    )
    processor, tower = build_text_tower(settings, train_tokenizer(sentences(200), settings.tokenizer, max_tokens))
    encoder = Encoder(Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(), tower.width, dim))}, dim, "t"))
    encoder.set_compute("float32")
    return encoder.eval()


def encode(encoder: Encoder, table: str, out: Path | str, pause: float = 0.0) -> None:
    """In ranges of 100; with a pause before each block, so that a kill finds it at work."""
    blocks = encoder.encode_blocks

    def slowly(inputs, *arguments, **settings):
        for part in blocks(inputs, *arguments, **settings):
            time.sleep(pause)
            yield part

    encoder.encode_blocks = slowly
    encode_source(encoder, open_source(table), "text", out, layout=Layout(shard_rows=100, batch_rows=25))


def forked(work) -> int:
    """The process that does some work and then ends."""
    if process := os.fork():
        return process
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def killed(encoder: Encoder, table: str, out: str, kills: int, seed: int) -> None:
    """Encode, killed so often after random times; each process by SIGKILL. Prints how many of them were at work."""
    torch.set_num_threads(1)
    draw, struck = random.Random(seed), 0
    while struck < kills:
        process = forked(lambda: encode(encoder, table, out, pause=0.02))
        time.sleep(draw.uniform(0, 0.3))
        os.kill(process, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != -signal.SIGKILL:
            break
        struck += 1
    assert os.waitstatus_to_exitcode(os.waitpid(forked(lambda: encode(encoder, table, out)), 0)[1]) == 0
    print(struck)


def main(what: str, model: str, table: str, out: str, *numbers: str) -> None:
    encoder = Encoder(open_model(model))
    encoder.set_compute("float32")
    if what == "killed":
        killed(encoder, table, out, *map(int, numbers))
    elif what == "slowly":  # says which rows it encoded
        encode(encoder, table, out, pause=float(numbers[0]))
    elif what == "limited":  # files of so many bytes at most: the disk is full
        open_source(table)  # which writes to the cache
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(numbers[0]), int(numbers[0])))
        encode(encoder, table, out)
    else:
        encode_source(encoder, open_source(table), "text", out)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])

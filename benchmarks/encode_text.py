"""How fast texts become vectors: mmcl beside sentence-transformers, the same model, texts and machine.

    python benchmarks/encode_text.py                    all, about half an hour on two cores
    python benchmarks/encode_text.py --minutes 5        what fits into five minutes, with fewer texts if need be

The texts: 60% Wikipedia sentences, 30% short ones of the STS tasks, 10% paragraphs of 3 to 8 other Wikipedia
sentences, shuffled, all distinct. The contenders alternate; the medians of the rounds are shown. The limit is
what the model's matrix products alone would allow, at the speed measured for them in this very run.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from measure import report, show

import mmcl
from mmcl.encoding.text_compute import PACKED_TOKENS
from mmcl.runtime.device import multiplies_bfloat16

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODEL = "sample:minilm"
BUCKETS = (16, 32, 64, 128, 256)
"""Upper ends, in tokens."""


def mixed_texts(count: int, data: Path) -> list[str]:
    """Distinct texts of very different lengths, as the head of this file says."""
    draw = random.Random(0)
    wiki = pq.read_table(data / "wiki_sentences.parquet").column("text").to_pylist()
    short = sorted(set(pq.read_table(data / "sts.parquet").column("sentence1").to_pylist()))
    draw.shuffle(wiki)
    draw.shuffle(short)
    short = short[: int(0.3 * count)]
    paragraphs = int(0.1 * count)
    sentences = wiki[: count - len(short) - paragraphs]
    rest = iter(wiki[len(sentences) :])
    joined = [" ".join(next(rest) for _ in range(draw.randint(3, 8))) for _ in range(paragraphs)]
    texts = sentences + short + joined
    draw.shuffle(texts)
    return texts


def alternate(contenders: dict[str, Callable[[], object]], rounds: int, until: float) -> dict[str, float]:
    """Median seconds of each; at least one round, and no other one that would end after ``until``."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        took = sum(statistics.median(values) for values in seconds.values() if values)
        if number and time.monotonic() + took > until:
            break
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def flops_a_token(net: Any) -> int:
    """Of the linear layers, which alone are counted: attention's own products are 2% of it at 30 tokens."""
    linear = [module for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)]
    return sum(2 * layer.in_features * layer.out_features for layer in linear if layer is not _pooler(net))


def _pooler(net: Any) -> Any:
    return getattr(getattr(net, "pooler", None), "dense", None)


@torch.inference_mode()
def product_speed(net: Any, dtype: torch.dtype) -> float:
    """FLOP/s of the model's own products, weighed as it uses them, without anything between: the ceiling."""
    width, inner = net.config.hidden_size, net.config.intermediate_size
    shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    layers = [
        (torch.randn(PACKED_TOKENS, rows).to(dtype), torch.randn(columns, rows).to(dtype)) for rows, columns in shapes
    ]
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        for states, weight in layers:
            F.linear(states, weight)
        best = min(best, time.perf_counter() - start)
    return sum(2 * PACKED_TOKENS * rows * columns for rows, columns in shapes) / best


def contenders_of(encoder: Any, library: Any, half: Any, bf16: bool, texts: list[str]) -> dict[str, Callable[[], Any]]:
    """Every way to encode ``texts``, by name."""

    def ours(dtype: str) -> np.ndarray:
        encoder.set_compute(dtype)
        vectors: np.ndarray = encoder.encode(texts, show_progress=False)
        return vectors

    ways: dict[str, Callable[[], Any]] = {
        "sentence-transformers": lambda: library.encode(texts, normalize_embeddings=True, show_progress_bar=False),
        "mmcl": lambda: ours("float32"),
    }
    if bf16:
        ways["sentence-transformers bf16"] = lambda: half.encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        )
        ways["mmcl bf16"] = lambda: ours("bfloat16")
    return ways


def decompose(encoder: Any, texts: list[str]) -> list[dict[str, Any]]:
    """Where the time of our float32 encode goes, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    kinds = {
        "products": ("addmm", "mm", "linear"),
        "attention": ("scaled_dot_product", "bmm"),
        "GELU": ("gelu",),
        "LayerNorm": ("layer_norm",),
        "embeddings": ("embedding", "index_select"),
        "copies and sums": ("copy_", "add_", "add", "cat"),
    }
    encoder.set_compute("float32")
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        encoder.encode(texts, show_progress=False)
        wall = time.perf_counter() - start
    spent = dict.fromkeys([*kinds, "other operations"], 0.0)
    for event in recorded.key_averages():
        name = event.key.removeprefix("aten::").lstrip("_").removeprefix("native_")
        kind = next((kind for kind, parts in kinds.items() if any(name.startswith(part) for part in parts)), None)
        spent[kind or "other operations"] += event.self_cpu_time_total / 1e6
    spent["Python, tokenizing, waiting"] = max(0.0, wall - sum(spent.values()))
    return [{"part": part, "percent": 100 * seconds / wall} for part, seconds in spent.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=30.0, help="soft limit of the whole")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 rows even where the CPU has no such products")
    parser.add_argument("--data", type=Path, default=DATA)
    measure(parser.parse_args())


def measure(given: argparse.Namespace) -> None:
    """All tables, the most important first."""
    logging.getLogger("mmcl").setLevel(logging.ERROR)
    from sentence_transformers import SentenceTransformer

    began, seconds = time.monotonic(), 60 * given.minutes
    encoder = mmcl.load(MODEL, dtype="float32")
    embedder = encoder.towers.text()
    library = SentenceTransformer(str(encoder.path), device="cpu")
    bf16 = given.bf16 or multiplies_bfloat16(torch.device("cpu"))
    half = (
        SentenceTransformer(str(encoder.path), device="cpu", model_kwargs={"dtype": torch.bfloat16}) if bf16 else None
    )
    texts = fitting(encoder, library, mixed_texts(given.texts, given.data), 0.5 * seconds / 2)
    lengths = np.array([len(ids) for ids in embedder.processor.tokenize(texts)[0]])
    ways = contenders_of(encoder, library, half, bf16, texts)
    vectors = {name: np.asarray(way(), dtype=np.float32) for name, way in ways.items()}  # also the warm-up
    took = alternate(ways, given.rounds, began + 0.6 * seconds)
    speeds = {"": product_speed(embedder.tower.net, torch.float32)}
    if bf16:
        speeds[" bf16"] = product_speed(embedder.tower.net, torch.bfloat16)
    base, exact = took["sentence-transformers"], vectors["sentence-transformers"]
    rows = []
    for name, spent in took.items():
        limit = speeds[" bf16" if name.endswith("bf16") else ""] / flops_a_token(embedder.tower.net)
        tokens_s = lengths.sum() / spent
        row: dict[str, Any] = {"what": name, "seconds": spent, "texts_s": len(texts) / spent, "tokens_s": tokens_s}
        row |= {"limit_tokens_s": limit, "share_of_limit": tokens_s / limit, "ratio": base / spent}
        rows.append(row | {"min_cosine": float((vectors[name] * exact).sum(axis=1).min())})
    if not bf16:
        rows.append({"what": "bfloat16: no such products in this CPU"})
    buckets = by_length(encoder, library, half, bf16, texts, lengths, began + 0.75 * seconds)
    parts = decompose(encoder, texts[: max(1, len(texts) // 10)])
    tables = {"by_length": buckets, "decomposition": parts}
    report(
        __file__, rows, texts=len(texts), tokens=int(lengths.sum()), threads=torch.get_num_threads(), model=MODEL,
        products_gflops={name.strip() or "float32": speed / 1e9 for name, speed in speeds.items()}, **tables,
    )  # fmt: skip
    for table in tables.values():
        print()
        show(table)


def fitting(encoder: Any, library: Any, texts: list[str], seconds: float) -> list[str]:
    """As many of the texts as both can encode once in so many seconds."""
    some = texts[:200]
    start = time.perf_counter()
    encoder.encode(some, show_progress=False)
    library.encode(some)
    return texts[: max(200, int(len(some) * seconds / (time.perf_counter() - start)))]


def by_length(
    encoder: Any, library: Any, half: Any, bf16: bool, texts: list[str], lengths: np.ndarray, until: float
) -> list[dict[str, Any]]:
    """Tokens a second of up to 1,000 texts of each range of lengths."""
    rows, low = [], 0
    for high in BUCKETS:
        places = np.flatnonzero((lengths > low) & (lengths <= high))[: min(1000, len(texts) // 5)]
        low = high
        if not len(places):
            continue
        left = max(0.0, until - time.monotonic()) / len(BUCKETS)
        took = alternate(
            contenders_of(encoder, library, half, bf16, [texts[place] for place in places]), 3, time.monotonic() + left
        )
        row: dict[str, Any] = {"tokens": f"to {high}", "texts": len(places)}
        row |= {f"{name} tokens/s": float(lengths[places].sum() / spent) for name, spent in took.items()}
        rows.append(row | {"ratio": took["sentence-transformers"] / took["mmcl"]})
    return rows


if __name__ == "__main__":
    main()

"""How fast texts become vectors: mmcl beside sentence-transformers, the same model, texts and machine.

    python benchmarks/encode_text.py                    all, about half an hour on two cores
    python benchmarks/encode_text.py --minutes 5        what fits into five minutes, with fewer texts if need be
    python benchmarks/encode_text.py --device cuda      besides: sentence-transformers with flash attention

The texts: 60% Wikipedia sentences, 30% short ones of the STS tasks, 10% paragraphs of 3 to 8 other Wikipedia
sentences, shuffled, all distinct. The contenders alternate; the medians of the rounds are shown. The limit is
what the model's matrix products alone would allow, at the rate measured for them in this very run by the library
that mmcl takes; sentence-transformers may multiply by a slower one. Beside mmcl's int8 stands sentence-transformers'
ONNX backend, quantised as its documentation says, where it can be loaded.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from measure import machine, report, show

import mmcl
from mmcl.encoding.text_compute import PACKED_TOKENS
from mmcl.runtime.device import multiplies_bfloat16, multiplies_int8
from mmcl.runtime.int8 import Int8Linear, Range
from mmcl.runtime.products import PackedLinear, onednn_multiplies_float32

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODEL = "sample:minilm"
DEFAULT = "sentence-transformers"
BUCKETS = (16, 32, 64, 128, 256)
"""Upper ends, in tokens."""


class Contender(NamedTuple):
    """A way to encode texts.

    Attributes:
        encode: from texts to unit vectors.
        precision: of its products.
    """

    encode: Callable[[list[str]], np.ndarray]
    precision: str


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


def alternate(contenders: dict[str, Contender], texts: list[str], rounds: int, until: float) -> dict[str, float]:
    """Median seconds of each; at least one round, and no other one that would end after ``until``."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        took = sum(statistics.median(values) for values in seconds.values() if values)
        if number and time.monotonic() + took > until:
            break
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender.encode(texts)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def flops_a_token(net: Any) -> int:
    """Of the linear layers, which alone are counted: attention's own products are 2% of it at 30 tokens."""
    linear = [module for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)]
    return sum(2 * layer.in_features * layer.out_features for layer in linear if layer is not _pooler(net))


def _pooler(net: Any) -> Any:
    return getattr(getattr(net, "pooler", None), "dense", None)


@torch.inference_mode()
def product_rate(net: Any, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the model's own products, weighed as it uses them, without anything between: the ceiling."""
    width, inner = net.config.hidden_size, net.config.intermediate_size
    shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    layers: list[tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]] = []
    for rows, columns in shapes:
        states, weight = (torch.randn(*shape, device=device) for shape in ((PACKED_TOKENS, rows), (columns, rows)))
        if dtype == torch.int8:
            layers.append((states.mul(30).clamp(0, 255).to(torch.uint8), Int8Linear(weight, None, Range(0.1, 0))))
        else:
            layers.append((states.to(dtype), PackedLinear(weight.to(dtype))))
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        for states, product in layers:
            product(states)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return sum(2 * PACKED_TOKENS * rows * columns for rows, columns in shapes) / best


def contenders_of(encoder: Any, folder: Path, bf16: bool) -> tuple[dict[str, Contender], list[str]]:
    """Every way to encode that the encoder's device has, by name, sentence-transformers' default first; and why others
    lack."""
    from sentence_transformers import SentenceTransformer

    def theirs(**options: Any) -> Callable[[list[str]], np.ndarray]:
        library = SentenceTransformer(str(encoder.path), device=str(encoder.device), **options)
        return lambda texts: library.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    def ours(dtype: str) -> Callable[[list[str]], np.ndarray]:
        own = mmcl.load(MODEL, device="cpu", dtype=dtype)  # what it prepares of the weights is kept between calls
        return lambda texts: own.encode(texts, show_progress=False)

    ways = {DEFAULT: Contender(theirs(), "float32"), "mmcl": Contender(ours("float32"), "float32")}
    missing = []
    if bf16:
        half = theirs(model_kwargs={"dtype": torch.bfloat16})
        ways[f"{DEFAULT} bf16"] = Contender(half, "bfloat16")
        ways["mmcl bf16"] = Contender(ours("bfloat16"), "bfloat16")
    else:
        missing.append("bfloat16: no such products here")
    if encoder.device.type == "cuda":
        try:
            flash = theirs(model_kwargs={"dtype": torch.bfloat16, "attn_implementation": "flash_attention_2"})
            ways[f"{DEFAULT} bf16 flash"] = Contender(flash, "bfloat16")
        except Exception as error:  # whatever keeps flash attention from being loaded
            missing.append(f"{DEFAULT} with flash attention does not load: {' '.join(str(error).split())[:150]}")
        return ways, missing
    if multiplies_int8(encoder.device):
        ways["mmcl int8"] = Contender(ours("int8"), "int8")
    else:
        missing.append("mmcl int8: no such products in this CPU")
    try:
        ways[f"{DEFAULT} ONNX int8"] = Contender(quantised(encoder.path, folder), "int8")
    except Exception as error:  # whatever versions of optimum, transformers and onnxruntime make of each other
        missing.append(f"{DEFAULT}'s ONNX int8 backend does not load: {' '.join(str(error).split())[:150]}")
    return ways, missing


def quantised(model: Path, folder: Path) -> Callable[[list[str]], np.ndarray]:
    """sentence-transformers' ONNX backend in int8, for the units that this CPU has."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    units = "avx512_vnni" if "avx512_vnni" in machine()["units"] else "avx2"
    library = SentenceTransformer(str(model), device="cpu", backend="onnx")
    library.save_pretrained(str(folder))
    export_dynamic_quantized_onnx_model(library, units, str(folder))
    file = {"file_name": f"onnx/model_qint8_{units}.onnx"}
    narrow = SentenceTransformer(str(folder), device="cpu", backend="onnx", model_kwargs=file)
    return lambda texts: narrow.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def decompose(encoder: Any, texts: list[str]) -> list[dict[str, Any]]:
    """Where the time of our float32 encode goes, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    kinds = {
        "products, with their GELU": ("addmm", "mm", "linear", "mkldnn::_linear"),
        "attention": ("scaled_dot_product", "bmm", "baddbmm", "softmax"),
        "GELU": ("gelu",),
        "LayerNorm": ("layer_norm",),
        "embeddings": ("embedding",),
        "copies and sums": ("copy_", "add_", "add", "cat", "index_select"),
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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    with tempfile.TemporaryDirectory() as folder:
        measure(parser.parse_args(), Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> None:
    """All tables, the most important first."""
    logging.getLogger("mmcl").setLevel(logging.ERROR)
    began, seconds = time.monotonic(), 60 * given.minutes
    encoder = mmcl.load(MODEL, device=given.device, dtype="float32")
    embedder = encoder.towers.text()
    net = embedder.tower.net
    bf16 = given.bf16 or multiplies_bfloat16(encoder.device)
    ways, missing = contenders_of(encoder, folder, bf16)
    texts = fitting(ways, mixed_texts(given.texts, given.data), 0.25 * seconds)
    lengths = np.array([len(ids) for ids in embedder.processor.tokenize(texts)[0]])
    vectors = {name: np.asarray(way.encode(texts), dtype=np.float32) for name, way in ways.items()}  # also the warm-up
    took = alternate(ways, texts, given.rounds, began + 0.6 * seconds)
    rates = {"float32": product_rate(net, torch.float32, encoder.device)}
    if bf16:
        rates["bfloat16"] = product_rate(net, torch.bfloat16, encoder.device)
    if "mmcl int8" in ways:
        rates["int8"] = product_rate(net, torch.int8, encoder.device)
    library = "cuBLAS" if given.device == "cuda" else "oneDNN" if onednn_multiplies_float32() else "MKL"
    hardware = machine()
    print(f"{hardware['cpu']}, units {', '.join(hardware['units'])}; float32 products by {library}")
    print("; ".join(f"{name} products at {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items()), end="\n\n")
    rows: list[dict[str, Any]] = []
    for name, spent in took.items():
        tokens_s = lengths.sum() / spent
        row: dict[str, Any] = {"what": name, "seconds": spent, "texts_s": len(texts) / spent, "tokens_s": tokens_s}
        if (rate := rates.get(ways[name].precision)) is not None:
            limit = rate / flops_a_token(net)
            row |= {"limit_tokens_s": limit, "share_of_limit": tokens_s / limit}
        row |= {f"to {other.removeprefix(DEFAULT).strip() or 'default'}": took[other] / spent
                for other in took if other.startswith(DEFAULT)}  # fmt: skip
        rows.append(row | {"min_cosine": float((vectors[name] * vectors[DEFAULT]).sum(axis=1).min())})
    buckets = by_length(ways, texts, lengths, began + 0.75 * seconds)
    parts = decompose(encoder, texts[: max(1, len(texts) // 10)])
    tables = {"by_length": buckets, "decomposition": parts}
    report(
        given.out, rows, texts=len(texts), tokens=int(lengths.sum()), threads=torch.get_num_threads(), model=MODEL,
        products_gflops={name: rate / 1e9 for name, rate in rates.items()}, float32_by=library,
        device=torch.cuda.get_device_name() if given.device == "cuda" else "cpu", missing=missing, **tables,
    )  # fmt: skip
    print(*missing, sep="\n")
    for table in tables.values():
        print()
        show(table)


def fitting(ways: dict[str, Contender], texts: list[str], seconds: float) -> list[str]:
    """As many of the texts as all can encode once in so many seconds."""
    some = texts[:200]
    for way in ways.values():
        way.encode(some[:8])
    start = time.perf_counter()
    for way in ways.values():
        way.encode(some)
    return texts[: max(200, int(len(some) * seconds / (time.perf_counter() - start)))]


def by_length(ways: dict[str, Contender], texts: list[str], lengths: np.ndarray, until: float) -> list[dict[str, Any]]:
    """Tokens a second of up to 1,000 texts of each range of lengths."""
    rows, low = [], 0
    for high in BUCKETS:
        places = np.flatnonzero((lengths > low) & (lengths <= high))[: min(1000, len(texts) // 5)]
        low = high
        if not len(places):
            continue
        left = max(0.0, until - time.monotonic()) / len(BUCKETS)
        took = alternate(ways, [texts[place] for place in places], 3, time.monotonic() + left)
        row: dict[str, Any] = {"tokens": f"to {high}", "texts": len(places)}
        row |= {f"{name} tokens/s": float(lengths[places].sum() / spent) for name, spent in took.items()}
        rows.append(row | {"ratio": took[DEFAULT] / took["mmcl"]})
    return rows


if __name__ == "__main__":
    main()

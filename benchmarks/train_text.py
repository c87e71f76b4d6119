"""How fast does the same model learn from sentences in mmcl, and in sentence-transformers' own trainer?

python benchmarks/train_text.py                  # each one's default precision, and every precision that is native
python benchmarks/train_text.py --device cuda

Unsupervised SimCSE of all-MiniLM-L6-v2 on real sentences of Wikipedia, cut at 32 tokens. Theirs is
`SentenceTransformerTrainer` with `MultipleNegativesRankingLoss` and pairs (sentence, sentence), ours `method: simcse`
in the loop that `mmcl train` runs. All settings but batch, length and precision are each one's defaults. The time is
that of the steps with their batches, without loading or saving a model. Contenders alternate; the table has medians of
the rounds. Shares are of the rate of products that the CPU reaches in each one's precision; products with the weights
of the layers are counted, those of padding are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from measure import machine, report
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from mmcl.config.load import load_config
from mmcl.data import samples
from mmcl.runtime.device import multiplies_bfloat16, resolve_precision
from mmcl.runtime.products import fast_products
from mmcl.training.loop import Trainer

MODEL = "sample:minilm"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "wiki_sentences.parquet"


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Seconds from before the first batch to after the last step."""

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start


def train_sentence_transformers(texts: list[str], precision: str, args: argparse.Namespace) -> float:
    """Seconds of an epoch in their trainer, ``precision`` being float32 or bfloat16."""
    model = SentenceTransformer(str(samples.get(MODEL.removeprefix("sample:"))), device=args.device)
    model.max_seq_length = args.tokens
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=args.batch,
            bf16=precision == "bfloat16",
            use_cpu=args.device == "cpu",
            report_to="none",
            disable_tqdm=True,
        )
        SentenceTransformerTrainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_dict({"anchor": texts, "positive": texts}),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[watch],
        ).train()
    return watch.seconds


def train_mmcl(texts: list[str], precision: str, args: argparse.Namespace) -> float:
    """Seconds of an epoch in our loop."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "sentences.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        config = load_config(
            {
                "method": "simcse",
                "data": {"train": {"source": str(source)}, "columns": {"text": "text"}},
                "model": {"dim": 384, "text": {"name": MODEL, "max_tokens": args.tokens, "head": {"kind": "none"}}},
                "training": {
                    "epochs": 1,
                    "batch_size": args.batch,
                    "precision": precision,
                    "device": args.device,
                },
            }
        )
        trainer = Trainer(config, Path(folder) / "run", resume=False, show_progress=False)
        trainer.fit()
        return float(trainer.progress.seconds)


def product_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """GFLOP/s of 2048 x 384 by 384 x 1536 on the CPU: the best of the tries that there is time for."""
    a, b = torch.randn(2048, 384, dtype=dtype), torch.randn(384, 1536, dtype=dtype)
    taken: list[float] = []
    start = time.perf_counter()
    with fast_products():
        while len(taken) < 5 or time.perf_counter() - start < seconds:
            begin = time.perf_counter()
            torch.mm(a, b)
            taken.append(time.perf_counter() - begin)
    return 2 * 2048 * 384 * 1536 / min(taken) / 1e9


def layer_flops(texts: list[str], tokens: int) -> float:
    """Of an epoch: the products with the weights of the layers, forward and twice that backward, of both views."""
    model = SentenceTransformer(str(samples.get(MODEL.removeprefix("sample:"))), device="cpu")
    modules = [part for name, part in model.named_modules() if "pooler" not in name]
    linear = [part for part in modules if isinstance(part, torch.nn.Linear)]
    ids = model.tokenizer(texts, truncation=True, max_length=tokens)["input_ids"]
    return 3 * 2 * sum(layer.weight.numel() for layer in linear) * 2 * sum(map(len, ids))


def medians(contenders: dict[str, Callable[[], float]], rounds: int, limit: float) -> tuple[dict[str, float], int]:
    """Median of the seconds that each returns, and of how many rounds; a first one does not count.

    No round is begun that would end after ``limit`` seconds, but one is always counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    ends = [time.perf_counter()]
    for number in range(rounds + 1):
        if number > 1 and 2 * ends[-1] - ends[-2] - ends[0] > limit:
            break
        for name, timed in contenders.items():
            taken = timed()
            if number:
                seconds[name].append(taken)
        ends.append(time.perf_counter())
    return {name: statistics.median(values) for name, values in seconds.items()}, len(ends) - 2


def precisions(device: torch.device) -> dict[str, tuple[str, str]]:
    """Label to theirs and ours; what is not native takes minutes for seconds and is left out."""
    native = ["float32", *(["bfloat16"] if multiplies_bfloat16(device) else [])]
    default = ("float32", resolve_precision("auto", device))
    rows = {("both " + name): (name, name) for name in native}
    if default[0] == default[1]:  # nothing else to measure
        return {"default of both, float32": default, **{k: v for k, v in rows.items() if v != default}}
    return {"default (float32, bfloat16)": default, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no other round of a row begins")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    count = args.batch * args.steps
    texts = pq.read_table(args.data, columns=["text"]).slice(0, count)["text"].to_pylist()
    if len(texts) < count:
        raise SystemExit(f"{args.data} has {len(texts)} sentences, not {count}")
    flops = layer_flops(texts, args.tokens)
    natively = ["float32", *(["bfloat16"] if multiplies_bfloat16(torch.device("cpu")) else [])]
    rates = {name: product_rate(getattr(torch, name)) for name in natively if args.device == "cpu"}
    print(f"{', '.join(machine()['units'])}; GFLOP/s: {rates}", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for label, (theirs, ours) in precisions(torch.device(args.device)).items():
        contenders = {
            "sentence-transformers": lambda precision=theirs: train_sentence_transformers(texts, precision, args),
            "mmcl": lambda precision=ours: train_mmcl(texts, precision, args),
        }
        seconds, rounds = medians(contenders, args.rounds, 60 * args.minutes)
        speed = {f"{name} sentences/s": count / taken for name, taken in seconds.items()}
        ratio = seconds["sentence-transformers"] / seconds["mmcl"]
        used = {"sentence-transformers": theirs, "mmcl": ours}
        shares = {f"{name} share": flops / seconds[name] / 1e9 / rates[of] for name, of in used.items() if of in rates}
        rows.append({"precision": label, **speed, "ratio": ratio, **shares, "rounds": rounds})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report(
        args.out,
        rows,
        device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        batch=args.batch,
        tokens=args.tokens,
        sentences=count,
        gflops_a_second=rates,
    )


if __name__ == "__main__":
    main()

"""How fast does the same CLIP learn from JPEG files in mmcl, and in open_clip's own training loop?

python benchmarks/train_clip.py                  # float32 and each one's default; bfloat16 where it is native
python benchmarks/train_clip.py --device cuda    # besides: torch.compile, and the share of the matrix-product ceiling

open_clip's side is its own code: `get_csv_dataset`, `train_one_epoch`, and what its `main` builds between them
(`pip install 'open_clip_torch[training]'`). Both sides read the same files and table, with open_clip's towers, its
default augmentation and the same batch. Contenders alternate; the table has medians of the rounds.

- `step`: one optimizer step on a batch in memory.
- `first epoch`: mmcl's with an empty cache, so that every image is decoded and every caption tokenized first.
- `epoch`: any other. open_clip's epochs are all alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import open_clip
import pyarrow.parquet as pq
import torch
from measure import show, write
from open_clip_train.data import get_data
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch.utils.flop_counter import FlopCounterMode

from mmcl.config.load import load_config
from mmcl.data.batches.feed import open_feed
from mmcl.methods import Step
from mmcl.runtime.device import DTYPES, multiplies_bfloat16, resolve_precision
from mmcl.training.loop import Trainer

Rows: TypeAlias = list[dict[str, Any]]
LEARNING_RATE = 5e-4  # open_clip's default
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL_RESNET = {
    "embed_dim": 256,
    "vision_cfg": {"layers": [2, 2, 2, 2], "width": 32, "image_size": 64},
    "text_cfg": {"context_length": 24, "width": 256, "heads": 4, "layers": 4},
}
PRECISIONS = {  # name here: open_clip's, mmcl's
    "default": ("amp", "auto"),
    "bfloat16": ("amp_bf16", "bfloat16"),
    "float32": ("fp32", "float32"),
}
DTYPE_OF = {"amp": torch.float16, "amp_bf16": torch.bfloat16, "fp32": torch.float32}  # open_clip's


@dataclass(frozen=True)
class Case:
    """A model and the files it learns from.

    Attributes:
        model: by open_clip's name.
        size: of the images.
        source: Parquet file with encoded images and captions.
        captions: its column of captions, one or a list a row.
        batch: pairs of a step.
        pairs: of an epoch, a multiple of ``batch``.
    """

    model: str
    size: int
    source: Path
    captions: str
    batch: int
    pairs: int

    def write_files(self, folder: Path) -> Path:
        """The images as JPEG files, and the tab-separated table that open_clip reads; returns the table.

        Every image comes with its first caption before any comes with its second.
        """
        rows = pq.read_table(self.source, columns=["image", self.captions]).slice(0, self.pairs).to_pylist()
        texts = [[row[self.captions]] if isinstance(row[self.captions], str) else row[self.captions] for row in rows]
        paths = [folder / f"{number:06d}.jpg" for number in range(len(rows))]
        for path, row in zip(paths, rows, strict=True):
            path.write_bytes(row["image"])
        turns = itertools.zip_longest(*texts)
        pairs = [(path, text) for turn in turns for path, text in zip(paths, turn, strict=True) if text]
        if len(pairs) < self.pairs:
            raise SystemExit(f"{self.source} has {len(pairs)} pairs, not {self.pairs}")
        lines = [f"{path}\t{' '.join(text.replace(chr(34), '').split())}" for path, text in pairs[: self.pairs]]
        table = folder / "pairs.tsv"
        table.write_text("\n".join(["filepath\ttitle", *lines]) + "\n", encoding="utf-8")
        return table


class OpenClip:
    """open_clip's training as its ``main`` sets it up."""

    def __init__(self, case: Case, table: Path, precision: str, device: str, compiled: bool) -> None:
        flags = f"--batch-size={case.batch} --precision={precision} --device={device} --model={case.model}"
        args = parse_args([f"--train-data={table}", "--dataset-type=csv", "--warmup=0", *flags.split()])
        args.distributed, args.distill, args.rank, args.world_size = False, False, 0, 1
        args.horovod, args.wandb = False, False
        model, train, val = open_clip.create_model_and_transforms(
            case.model, precision=precision, device=device, output_dict=True
        )
        self.args, self.loss = args, open_clip.ClipLoss()
        self.dtype = DTYPE_OF[precision]
        tokenizer = open_clip.get_tokenizer(case.model)
        self.data = get_data(args, (train, val), tokenizer=tokenizer)

        def free(name: str, parameter: torch.nn.Parameter) -> bool:
            return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

        named = list(model.named_parameters())
        groups = [
            {"params": [p for n, p in named if free(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not free(n, p)], "weight_decay": args.wd},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)
        self.scaler = torch.amp.GradScaler(device=device) if precision == "amp" else None
        self.scheduler = cosine_lr(self.optimizer, args.lr, 0, 1_000_000)
        self.model = torch.compile(model) if compiled else model
        self._kept: list[Any] = []

    def epoch(self) -> float:
        """Seconds of an epoch from files."""
        return self._timed(self.data)

    def step(self) -> float:
        """Seconds of a step on a batch in memory."""
        if not self._kept:
            self._kept = list(itertools.islice(self.data["train"].dataloader, 1))
        return self._timed({"train": SimpleNamespace(set_epoch=lambda _: None, dataloader=_Kept(self._kept))})

    def _timed(self, data: Any) -> float:
        _wait(self.args.device)
        start = time.perf_counter()
        train_one_epoch(
            self.model, data, self.loss, 0, self.optimizer, self.scaler, self.scheduler, None, self.args, None
        )
        _wait(self.args.device)
        return time.perf_counter() - start


class _Kept(list[Any]):
    """Batches in memory, with the two numbers that open_clip keeps at its loaders."""

    @property
    def num_batches(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        return sum(len(texts) for _, texts in self)


class Mmcl:
    """mmcl's training, a new run for every epoch measured, so that each starts from the same weights."""

    def __init__(self, case: Case, table: Path, precision: str, device: str, compiled: bool, scratch: Path) -> None:
        self.scratch, self.device = scratch, device
        self.dtype = DTYPES[resolve_precision(precision, torch.device(device))]
        half = {"name": f"open_clip:{case.model}", "head": {"kind": "none"}}
        width = open_clip.get_model_config(case.model)["embed_dim"]
        self.config = load_config(
            {
                "data": {
                    "train": {"source": str(table)},
                    "columns": {"image": "filepath", "text": "title"},
                    "image": {"size": case.size},
                },
                "model": {"dim": width, "image": half, "text": half},
                "augmentation": {"crop_scale": [0.9, 1.0]},
                "training": {
                    "epochs": 1,
                    "batch_size": case.batch,
                    "precision": precision,
                    "device": device,
                    "compile": compiled,
                    "warmup": 0,
                    "lr": LEARNING_RATE,
                    "save_every": 1_000_000,
                },
            }
        )
        self._stack = ExitStack()
        self._kept: tuple[Trainer, Any] | None = None

    def first_epoch(self) -> float:
        """Seconds of an epoch and, before it, of decoding and tokenizing into an empty cache."""
        with self._trainer() as trainer:
            shutil.rmtree(os.environ["MMCL_CACHE"])
            start = time.perf_counter()
            open_feed(
                [self.config.data.train],
                trainer.method.reading,
                self.config,
                self.scratch,
                augmented=True,
                device=trainer.device,
                show_progress=False,
            )
            preparing = time.perf_counter() - start
            trainer.fit()
            return preparing + float(trainer.progress.seconds)

    def epoch(self) -> float:
        """Seconds of an epoch when all is cached."""
        with self._trainer() as trainer:
            trainer.fit()
            return float(trainer.progress.seconds)

    def step(self) -> float:
        """Seconds of a step on a batch in memory."""
        if self._kept is None:
            trainer = self._stack.enter_context(self._trainer())
            batches = trainer.feed.batches(0, 1)
            self._kept = trainer, next(batches)
            batches.close()
            trainer.method.train()
        trainer, batch = self._kept
        _wait(self.device)
        start = time.perf_counter()
        trainer.step([batch], Step(0, 1), LEARNING_RATE)
        _wait(self.device)
        return time.perf_counter() - start

    def close(self) -> None:
        """Remove what steps were measured with."""
        self._stack.close()

    @contextmanager
    def _trainer(self) -> Iterator[Trainer]:
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            yield Trainer(self.config, Path(folder) / "run", resume=False, show_progress=False)


def compare(case: Case, precision: str, compiled: bool, scratch: Path, args: argparse.Namespace) -> Rows:
    """The table's rows for one model and precision.

    A precision that the hardware emulates takes minutes for what else takes seconds: then an epoch is one batch, it is
    not warmed up, and nothing but the epoch is measured.
    """
    theirs, ours = PRECISIONS[precision]
    slow = ceiling(args.device, DTYPE_OF[theirs]) < ceiling(args.device, torch.float32) / 2
    case = replace(case, pairs=case.batch) if slow else case
    table = case.write_files(scratch)
    mine = Mmcl(case, table, ours, args.device, compiled, scratch)
    contenders = {"open_clip": OpenClip(case, table, theirs, args.device, compiled), "mmcl": mine}
    rows: Rows = []

    def add(what: str, pairs: int, seconds: dict[str, float], **more: Any) -> None:
        speed = {name: pairs / value for name, value in seconds.items()}
        row = {"model": case.model, "precision": precision, "compiled": compiled, "what": what, "pairs": pairs}
        row |= {f"{name} pairs/s": value for name, value in speed.items()}
        rows.append(row | {"ratio": speed["mmcl"] / speed["open_clip"], **more})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)

    if not slow:
        steps = medians({name: contender.step for name, contender in contenders.items()}, args.rounds)
        add("step", case.batch, steps, **({} if compiled else _shares(contenders, steps, args.device)))
    if not compiled:  # every run of mmcl's compiles anew, which would be most of a short epoch
        epochs = {name: contender.epoch for name, contender in contenders.items()}
        later = medians(epochs, args.rounds, warm_up=not slow)
        first = medians({"mmcl": mine.first_epoch}, args.rounds)
        add("epoch", case.pairs, later)
        add("first epoch", case.pairs, later | first)
    mine.close()
    return rows


def medians(contenders: dict[str, Callable[[], float]], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """Median of the seconds that each returns; every round has all of them, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + warm_up):
        for name, timed in contenders.items():
            taken = timed()
            if number >= warm_up:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _shares(contenders: dict[str, Any], seconds: dict[str, float], device: str) -> dict[str, float]:
    """What share of the matrix-product ceiling of its precision each one's step reaches with the products it does."""
    shares = {}
    for name, contender in contenders.items():
        with FlopCounterMode(display=False) as counter:
            contender.step()
        reached = counter.get_total_flops() / seconds[name]
        shares[f"{name} share"] = reached / ceiling(device, contender.dtype)
    return shares


def ceiling(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    size, times = (8192, 10) if device == "cuda" else (1024, 5)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(times):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def cases(args: argparse.Namespace) -> dict[str, Case]:
    """The models and their files; a CPU's epoch takes about a minute, a GPU's batch is one that fills it."""
    flickr, fashion = args.data / "flickr8k_1000.parquet", args.data / "fashion" / "train.parquet"
    vit, resnet = ((64, 128), (256, 2048)) if args.device == "cpu" else ((1024, 4096), (4096, 36864))
    every = {
        "vit": Case("ViT-B-32", 224, flickr, "captions", *vit),
        "resnet": Case("small-resnet", 64, fashion, "caption", *resnet),
    }
    changes = {"batch": args.batch, "pairs": args.pairs}
    given = {name: value for name, value in changes.items() if value}
    return {name: replace(every[name], **given) for name in args.case}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=("vit", "resnet"), default=["vit", "resnet"])
    parser.add_argument("--precision", nargs="+", choices=tuple(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="pairs of a step")
    parser.add_argument("--pairs", type=int, help="pairs of an epoch, a multiple of the batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    native = multiplies_bfloat16(torch.device(args.device))
    precisions = [name for name in args.precision if native or name != "bfloat16"]
    # As open_clip's main has it, and here for both.
    torch.backends.cuda.matmul.allow_tf32 = True
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "batch": {case.model: case.batch for case in cases(args).values()},
        "bfloat16": "native" if native else "not native here, not run",
    }
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["MMCL_CACHE"] = str(scratch / "cache")
        (scratch / "small-resnet.json").write_text(json.dumps(SMALL_RESNET), encoding="utf-8")
        open_clip.add_model_config(scratch / "small-resnet.json")
        variants = (False, True) if args.device == "cuda" else (False,)
        for case, precision, compiled in itertools.product(cases(args).values(), precisions, variants):
            with tempfile.TemporaryDirectory(dir=scratch) as files:
                rows += compare(case, precision, compiled, Path(files), args)
            write(args.out, rows, **facts)
    show(rows)


if __name__ == "__main__":
    main()

"""The training loop."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from mmcl.config.load import load_config, to_yaml
from mmcl.config.schema import Config, SourceConfig
from mmcl.data.sources import open_source
from mmcl.methods import Batch, Method
from mmcl.runtime import distributed
from mmcl.runtime.device import DTYPES, pick_device, resolve_precision
from mmcl.runtime.errors import DivergedError, MmclError
from mmcl.runtime.files import atomic_file
from mmcl.training.average import WeightAverage
from mmcl.training.build import build_method
from mmcl.training.checkpoint import Progress, learned_names, list_checkpoints, load_checkpoint, save_checkpoint
from mmcl.training.evaluate import evaluate
from mmcl.training.logs import MetricsLog, Ticker
from mmcl.training.optim import build_optimizer, learning_rate
from mmcl.training.run import Run, read_lines
from mmcl.training.table_feed import TableFeed

log = logging.getLogger("mmcl")


def train(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    show_progress: bool | None = None,
) -> Run:
    """Train what a config describes.

    Args:
        config: path of a YAML file, a mapping or a ``Config``.
        out: the run folder; ``runs/NAME`` if absent.
        overrides: ``key=value`` strings, as the command line's ``--set``.
        resume: go on from the newest checkpoint in the run folder. The result equals that of an uninterrupted run.
        show_progress: a bar on stderr; for a terminal if absent. Otherwise a line now and then is logged.

    Raises:
        MmclError: the config, the data or the run folder is not as needed.
        DivergedError: the loss or the gradient stopped being finite.
    """
    config = load_config(config, overrides)
    folder = Path(out) if out is not None else Path("runs") / config.name
    trainer = Trainer(config, folder, resume=resume, show_progress=show_progress)
    trainer.fit()
    return Run(folder)


class Trainer:
    """Everything of one run in progress."""

    def __init__(self, config: Config, folder: Path, *, resume: bool, show_progress: bool | None = None) -> None:
        self.config = config
        self.folder = folder
        self.show_progress = show_progress
        settings = config.training
        # Precision is this loop's own business: accelerate's is a process-wide setting that outlives a run.
        device = pick_device(settings.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        # Process 0 may decode or evaluate for hours while the others wait at a barrier.
        patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
        self.accelerator = Accelerator(mixed_precision="no", cpu=device.type == "cpu", kwargs_handlers=[patience])
        self.device = self.accelerator.device
        self.precision = resolve_precision(settings.precision, self.device)
        self.main = self.accelerator.is_main_process
        checkpoints = _prepare_folder(folder, config, resume, self.main)

        rows = open_source(config.data.train.source, split=config.data.train.split)
        self.method: Method = build_method(config, rows, folder)
        self.method.to(self.device)
        self.feed = self._open_feed([config.data.train, *config.data.mix], augmented=True)
        self.judged = {
            name: self._open_feed([source], augmented=False) for name, source in config.evaluation.sources.items()
        }
        for feed in self.judged.values():
            feed.require_rows()
        self.steps = max(1, round(settings.epochs * len(self.feed) / settings.accumulate))
        every = config.evaluation.every
        self.evaluate_every = max(1, round(every * len(self.feed) / settings.accumulate)) if every else self.steps

        self.optimizer = build_optimizer(self.method, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")
        self.wrapped: nn.Module = self.accelerator.prepare_model(self.method)
        torch.manual_seed(config.seed + 1 + distributed.rank())  # dropout differs between processes
        decay = settings.average
        self.average = WeightAverage(self.method, learned_names(self.method), decay) if decay else None
        self.progress = Progress(data=self.feed.fingerprint)
        if checkpoints:
            self.progress = load_checkpoint(checkpoints[-1], self.method, self.optimizer, self.average)
            self.scaler.load_state_dict(self.progress.scaler)
            if self.progress.data != self.feed.fingerprint:
                raise MmclError(
                    f"{self.feed.name}: changed since the run in {folder} began; start a new one with --out"
                )
        self.metrics = MetricsLog(
            folder, active=self.main, resume_step=self.progress.step, tensorboard=settings.tensorboard
        )

    def fit(self) -> None:
        """Train to the last step and write the model folder."""
        self.method.train()
        self._announce()
        settings, progress = self.config.training, self.progress
        ticker = Ticker(self.steps, progress.step, show=self.show_progress if self.main else False)
        accumulate = settings.accumulate
        batches = self.feed.batches(progress.step * accumulate, self.steps * accumulate)
        started = time.monotonic() - progress.seconds
        timed, since = 0, time.monotonic()
        try:
            for step in range(progress.step, self.steps):
                rate = learning_rate(settings, step, self.steps)
                loss, norm, views = self._step(list(itertools.islice(batches, accumulate)), step, rate)
                progress.window.append(loss)
                timed += 1
                progress.step, progress.seconds = step + 1, time.monotonic() - started
                if progress.step % settings.log_every == 0 or progress.step == self.steps:
                    rate_of_pairs = timed * settings.batch_size * settings.accumulate / (time.monotonic() - since)
                    values = {"loss": sum(progress.window) / len(progress.window), **self.method.metrics(views)}
                    ticker.show(progress.step, {**values, "pairs/s": rate_of_pairs})
                    epoch = progress.step * accumulate / len(self.feed)
                    extra = {"lr": rate, "grad_norm": norm, "pairs_per_second": rate_of_pairs}
                    self.metrics.write(progress.step, {"epoch": round(epoch, 4), **values, **extra})
                    progress.window = []
                    timed, since = 0, time.monotonic()
                del views
                improved = self._evaluate() if self._due(self.evaluate_every) else False
                if improved or self._due(settings.save_every):
                    progress.scaler = self.scaler.state_dict()
                    save_checkpoint(
                        self.folder,
                        self.method,
                        self.optimizer,
                        progress,
                        keep=settings.keep,
                        average=self.average,
                    )
                    timed, since = 0, time.monotonic()  # the rate is that of learning
        finally:
            batches.close()
            ticker.close()
            self.metrics.close()
        self._finish()

    def _step(self, batches: list[Batch], step: int, rate: float) -> tuple[float, float, dict[str, torch.Tensor]]:
        """One optimizer step; returns the loss, the gradient's norm before clipping, and the last global views."""
        settings = self.config.training
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                dtype = DTYPES[self.precision]
                with torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "float32"):
                    views = self.wrapped(batch.to(self.device))
                views = {name: distributed.gather_rows(view) for name, view in views.items()}
                loss = self.method.loss(views).value
                if not torch.isfinite(loss):
                    raise self._diverged("loss", loss.item(), step, batch)
                self.scaler.scale(loss / len(batches)).backward()
                total += loss.item() / len(batches)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.method.parameters(), settings.clip_grad or math.inf).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():  # a scaler skips such a step by itself
            raise self._diverged("gradient", norm, step, batches[-1])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step()
        if self.average is not None:
            self.average.update(step + 1)
        return total, norm, {name: view.detach() for name, view in views.items()}

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.steps

    def _evaluate(self) -> bool:
        """Judge the model on every source; whether the named metric is the best so far."""
        if not self.judged:
            return False
        values: dict[str, float] = {}
        if self.main:
            for name, feed in self.judged.items():
                with self.average.applied() if self.average else nullcontext():
                    scores = evaluate(self.method.encoder, feed, self.config.evaluation.ks)
                values |= {f"{name}/{key}": value for key, value in scores.items()}
            self.metrics.write(self.progress.step, {"evaluation": values})
            best = self.config.evaluation.best
            shown = {key: value for key, value in values.items() if key == best or (not best and key.endswith("hit@1"))}
            log.info("step %d  %s", self.progress.step, "  ".join(f"{key} {value:.4f}" for key, value in shown.items()))
        improved = self._is_best(values) if self.main else False
        return bool(_same_everywhere(float(improved), self.device))

    def _is_best(self, values: dict[str, float]) -> bool:
        name = self.config.evaluation.best
        if name is None:
            return False
        value, best = values[name], self.progress.best
        if best is not None and (value >= best if name.endswith("median_rank") else value <= best):
            return False
        self.progress.best, self.progress.best_step = value, self.progress.step
        return True

    def _finish(self) -> None:
        """Take the best weights, if a metric was named, and write the model folder."""
        step = self.progress.step
        if self.progress.best_step is not None and self.progress.best_step != step:
            step = self.progress.best_step
            load_checkpoint(self.folder / "checkpoints" / f"step-{step:08d}", self.method, None, self.average)
        if self.main:
            encoder = self.method.encoder
            encoder.card = self._card(step)
            with self.average.applied() if self.average else nullcontext():
                encoder.save(self.folder / "model")
            for file in (self.folder / "features").glob("*.npy"):
                file.unlink()
            log.info("model written to %s", self.folder / "model")
        distributed.barrier()

    def _card(self, step: int) -> dict[str, Any]:
        """What the model card tells beside the architecture."""
        config = self.config
        data = {"rows": len(self.feed.positions), "source": self.feed.name, "skipped": len(self.feed.problems())}
        keys = ("batch_size", "epochs", "lr", "weight_decay", "schedule")
        training = {"method": config.method.name, "step": step, "steps": self.steps, "precision": self.precision}
        training |= {key: getattr(config.training, key) for key in keys} | {"seconds": round(self.progress.seconds, 1)}
        card: dict[str, Any] = {"data": data, "training": training}
        for line in Run(self.folder).lines():
            if line["step"] == step and "evaluation" in line:
                kinds = ("hit@", "mrr", "median_rank")
                card["scores"] = {k: v for k, v in line["evaluation"].items() if k.split("/")[-1].startswith(kinds)}
        return card

    def _open_feed(self, sources: Sequence[SourceConfig], *, augmented: bool) -> TableFeed:
        """Process 0 fills the caches, then the others find them full."""

        def make() -> TableFeed:
            return TableFeed(
                sources,
                self.method.inputs,
                self.config,
                self.method.encoder.eval(),
                self.folder / "features",
                extra=self.method.extra,
                augmented=augmented,
                device=self.device,
                show_progress=self.show_progress,
            )

        feed = make() if self.main else None
        distributed.barrier()
        feed = feed or make()
        problems = feed.problems()
        if problems and self.main:
            path = self.folder / "skipped.jsonl"
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"source": feed.name, **problem}) + "\n" for problem in problems)
            log.warning("%s: %d of %d rows skipped, listed in %s", feed.name, len(problems), feed.total, path)
        return feed

    def _announce(self) -> None:
        settings, world = self.config.training, distributed.world_size()
        threads = f" ({torch.get_num_threads()} threads)" if self.device.type == "cpu" else ""
        learned = sum(p.numel() for p in self.method.parameters() if p.requires_grad)
        if self.main:
            log.info(
                "%s on %d rows of %s: %d × %s%s, %s, global batch %d, %d negatives per query, "
                "%.1f M learned parameters, %d steps of which %d are done",
                self.config.method.name,
                len(self.feed.positions),
                self.feed.name,
                world,
                self.device.type,
                threads,
                self.precision,
                settings.batch_size * settings.accumulate,
                settings.batch_size - 1 + self.feed.extra_count,
                learned / 1e6,
                self.steps,
                self.progress.step,
            )

        norms = [layer for layer in self.method.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        if self.main and world > 1 and any(layer.training for layer in norms):
            log.warning(
                "%d batch normalisation layers see each process's %d rows only, so the result depends on the number "
                "of processes",
                len(norms),
                settings.batch_size // world,
            )

    def _diverged(self, what: str, value: float, step: int, batch: Batch) -> DivergedError:
        rows = distributed.gather_rows(batch.rows.to(self.device)).cpu()
        ids = self.feed.names(replace(batch, rows=rows))
        path = self.folder / "diverged.json"
        if self.main:
            told = {"step": step + 1, "what": what, "rows": ids}
            with atomic_file(path) as beside:
                beside.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        checkpoints = list_checkpoints(self.folder)
        last = checkpoints[-1] if checkpoints else "none yet"
        return DivergedError(
            f"{self.folder}: the {what} became {value} at step {step + 1}; the batch's row ids are in {path} (first: "
            f"{', '.join(ids[:3])}); last good checkpoint: {last}; start anew with a lower training.lr"
        )


def _prepare_folder(folder: Path, config: Config, resume: bool, main: bool) -> list[Path]:
    """Make or check the run folder; returns the checkpoints to resume from.

    A folder in which nothing was learned yet (a first start that failed, say) is taken over.
    """
    distributed.barrier()
    ours = (folder / "config.yaml").is_file() and (folder / "features").is_dir()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not ours):
        raise MmclError(f"{folder}: exists and is no run folder; choose another --out")
    checkpoints = list_checkpoints(folder)
    begun = bool(checkpoints or read_lines(folder / "metrics.jsonl"))
    distributed.barrier()  # nobody writes before everybody has looked
    if begun and not resume:
        raise MmclError(f"{folder}: holds a run already; continue it with --resume, or choose another --out")
    if begun:
        different = _first_difference(Run(folder).config.model_dump(mode="json"), config.model_dump(mode="json"))
        if different:
            raise MmclError(f"{folder}: '{different}' is not as in its config.yaml; a resumed run keeps its config")
    elif resume and not ours:
        raise MmclError(f"{folder}: no run to resume there; leave out --resume to start one")
    if main:
        if not begun:
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)
            shutil.rmtree(folder / "features", ignore_errors=True)
            with atomic_file(folder / "config.yaml") as beside:
                beside.write_text(to_yaml(config), encoding="utf-8")
        (folder / "skipped.jsonl").unlink(missing_ok=True)
        (folder / "features").mkdir(exist_ok=True)
    distributed.barrier()
    return checkpoints


def _first_difference(old: Any, new: Any, key: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            found = _first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
            if found:
                return found
        return None
    return None if old == new else key


def _same_everywhere(value: float, device: torch.device) -> float:
    """Process 0's value, on every process."""
    if distributed.world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    torch.distributed.broadcast(tensor, 0)
    return tensor.item()

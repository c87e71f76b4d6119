"""The training loop."""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from mmcl.config.data import JudgedSourceConfig, TrainSourceConfig
from mmcl.config.load import load_config
from mmcl.config.schema import Config
from mmcl.data.batches.batch import Batch
from mmcl.data.batches.feed import Feed, open_feed
from mmcl.data.batches.table import Table
from mmcl.methods import Method
from mmcl.models.embedder import embedders
from mmcl.runtime import distributed, sharding
from mmcl.runtime.device import pick_device, ready_after_fork, resolve_precision
from mmcl.runtime.errors import DivergedError, MmclError
from mmcl.runtime.files import write_json
from mmcl.training.announce import announce, card_of, require_whole_steps, tell_of_speed
from mmcl.training.build import build_method, finish_encoder, require_tokens
from mmcl.training.checkpoint import (
    Progress,
    learned_names,
    list_checkpoints,
    load_checkpoint,
    recorded_precision,
    save_checkpoint,
)
from mmcl.training.clock import Clock
from mmcl.training.ensemble import choose_share, interpolated, is_better, load_start, save_start
from mmcl.training.evaluate import Judge, PairsJudge, open_judge
from mmcl.training.interrupt import Interrupts
from mmcl.training.logs import MetricsLog, Ticker
from mmcl.training.mining import Miner
from mmcl.training.optimization.average import WeightAverage
from mmcl.training.optimization.batch_norm import prepare_batch_norm
from mmcl.training.optimization.not_finite import NotFiniteError, require_finite_weights
from mmcl.training.optimization.optim import build_optimizer, freeze_groups, learning_rate
from mmcl.training.optimization.step import Stepper, StepResult, parallel_method
from mmcl.training.run import Run
from mmcl.training.run_folder import (
    FolderError,
    SkippedList,
    alone_in,
    gone_if_refused,
    has_begun,
    prepare_folder,
    write_config,
)

log = logging.getLogger("mmcl")
T = TypeVar("T")
SHOWN = ("hit@1", "ndcg@10", "spearman")  # of the metrics of an evaluation
START = "start.safetensors"  # the weights before training, in the run folder


def train(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    find_batch: bool = False,
    show_progress: bool | None = None,
) -> Run:
    """Train what a config describes.

    Args:
        config: path of a YAML file, a mapping or a ``Config``.
        out: the run folder; ``runs/NAME`` if absent.
        overrides: ``key=value`` strings, as the command line's ``--set``.
        resume: go on from the newest checkpoint in the run folder. The result equals that of an uninterrupted run.
        find_batch: put the largest batch that fits into memory in the place of ``training.batch_size``; a resumed run
            keeps the one it found.
        show_progress: a bar on stderr; for a terminal if absent. Otherwise a line now and then is logged.

    Raises:
        MmclError: the config, the data or the run folder is not as needed.
        DivergedError: the loss or the gradient stopped being finite.
        KeyboardInterrupt: as it comes, saying at which step and how to go on.
    """
    config = load_config(config, overrides)
    folder = Path(out) if out is not None else Path("runs") / config.name
    with distributed.lost_process_is_told(lambda: _how_to_go_on(folder, "all of them")):
        return _train(config, folder, resume, find_batch, show_progress)


def _train(config: Config, folder: Path, resume: bool, find_batch: bool, show_progress: bool | None) -> Run:
    with alone_in(folder) as new:
        try:
            with gone_if_refused(folder, new):
                if find_batch:
                    from mmcl.training.find_batch import fitting

                    config = fitting(config, folder, resume)
                trainer = Trainer(config, folder, resume=resume, show_progress=show_progress)
        except FolderError:
            if distributed.world_size() == 1:
                from mmcl.training.check_config import check_config

                check_config(config, show_progress)  # its mistakes come first: another folder would not mend them
            raise
        try:
            trainer.fit()
        except NotFiniteError as error:
            raise trainer.diverged(error) from None
        except KeyboardInterrupt:
            told = f"interrupted at step {trainer.progress.step} of {trainer.steps}; {_how_to_go_on(folder, 'it')}"
            raise KeyboardInterrupt(told) from None
    return Run(folder)


def _how_to_go_on(folder: Path, run: str) -> str:
    if checkpoints := list_checkpoints(folder):
        return f"start {run} again with --resume, which goes on from {checkpoints[-1]}"
    flag = " with --resume" if has_begun(folder) else ""
    return f"start {run} again{flag}, from the first step: there is no checkpoint yet"


class Trainer:
    """Everything of one run in progress.

    Args:
        config: of the run.
        folder: of the run.
        resume: go on from the newest checkpoint there.
        features: compute those of frozen towers, once, as training needs them.
        show_progress: as :func:`train`.
    """

    def __init__(
        self, config: Config, folder: Path, *, resume: bool, features: bool = True, show_progress: bool | None = None
    ) -> None:
        self.config = config
        self.folder = folder
        self.scratch = folder / "features" if features else None
        self.show_progress = show_progress
        settings = config.training
        self.device = _start_device(settings.device, timedelta(minutes=settings.timeout))
        self.main = distributed.rank() == 0
        checkpoints = prepare_folder(folder, config, resume)
        self.precision = choose_precision(settings.precision, self.device, checkpoints)
        self.skipped = SkippedList(folder)

        self.method: Method = build_method(config, folder).to(self.device)
        prepare_batch_norm(self.method, settings, self.device)
        require_tokens(self.method, config)
        self.feed = self._open_feed([config.data.train, *config.data.mix])
        self.judges = {name: self._open_judge(name, source) for name, source in config.evaluation.sources.items()}
        self.steps = self._steps_of(config)
        require_whole_steps(settings, len(self.feed))
        queue = getattr(config.method, "queue", None)
        if queue is not None and queue.start >= self.steps and not checkpoints:
            raise MmclError(
                f"method.queue.start: {queue.start}, but the run has {self.steps} steps, so that no past rows would "
                "count; lower it, raise training.epochs, or leave the queue out"
            )
        every = config.evaluation.every
        self.evaluate_every = max(1, round(every * len(self.feed) / settings.accumulate)) if every else self.steps

        self.miner = self._opened(self._open_miner) if config.data.mining else None

        freeze_groups(self.method, settings)
        wrapped = parallel_method(self.method, settings, self.device)
        optimizer = build_optimizer(self.method, settings)
        torch.manual_seed(config.seed + 1 + distributed.rank())  # dropout differs between processes
        decay = settings.average
        self.average = WeightAverage(self.method, learned_names(self.method), decay) if decay else None
        self.step = Stepper(self.method, wrapped, optimizer, settings, self.device, self.precision, self.average)
        self.progress = Progress(data=self.feed.fingerprint, precision=self.precision)
        if checkpoints:
            self._resume(checkpoints[-1], Run(folder).config)
        elif settings.wise_ft:
            save_start(self.method, learned_names(self.method), folder / START)
        if self.miner is not None:
            self.miner.restore(self.progress.step)
        self.metrics = MetricsLog(
            folder, active=self.main, resume_step=self.progress.step, tensorboard=settings.tensorboard
        )

    def fit(self) -> None:
        """Train to the last step and write the model folder.

        Raises:
            NotFiniteError: the loss, the gradient, the weights or the vectors stopped being finite.
            KeyboardInterrupt: as it comes, but between two steps; a checkpoint of what was learned has been written.
        """
        with Interrupts() as interrupts:
            try:
                self._fit(interrupts)
            except KeyboardInterrupt:
                if not interrupts.torn and distributed.world_size() == 1:
                    self._save_what_is_new()
                raise

    def _fit(self, interrupts: Interrupts) -> None:
        self.method.train()
        announce(self)
        settings, progress, accumulate = self.config.training, self.progress, self.config.training.accumulate
        ticker = Ticker(self.steps, progress.step, show=self.show_progress if self.main else False)
        batches: Generator[Batch, None, None] = (_ for _ in ())
        until = progress.step  # the first are asked for in the loop, as all are
        clock = Clock(self.device)
        self._judge_start()
        started = time.monotonic() - progress.seconds
        try:
            with clock.aside():
                self._judge_and_save()  # what an interrupted run owes
            for step in range(progress.step, self.steps):
                if step == until:
                    batches.close()
                    with clock.aside():
                        batches, until = self._batches()
                rate = learning_rate(settings, step, self.steps)
                with clock.waiting():
                    taken = list(itertools.islice(batches, accumulate))
                with interrupts.held():
                    with clock.step():
                        result = self._step(taken, step, rate)
                    progress.window.append({"loss": result.loss, **result.parts})
                    progress.position = taken[-1].position
                    progress.step, progress.seconds = step + 1, time.monotonic() - started
                    progress.judged = not self._due(self.evaluate_every)
                    if progress.step % settings.log_every and progress.step < self.steps:
                        ticker.show(progress.step)
                    else:
                        self._log(ticker, result, rate, clock.rate() * settings.batch_size * accumulate)
                    del result
                    if shares := clock.tick():
                        self.metrics.write(progress.step, {"time": shares._asdict()})
                with clock.aside():
                    if not self._judge_and_save() and self._due(settings.save_every):
                        self._save()
            batches.close()
            ticker.close()
            if self.main:
                tell_of_speed(self.folder, self.steps, progress.seconds)
            self._finish()
        finally:
            batches.close()
            ticker.close()
            self.metrics.close()

    def _batches(self) -> tuple[Generator[Batch, None, None], int]:
        """The batches to come, and the step before which new ones are asked for: none is prepared before what it is
        to carry has been mined."""
        step, stop, accumulate = self.progress.step, self.steps, self.config.training.accumulate
        if self.miner is not None:
            stop = self.miner.next(step, stop)
            if self.miner.due(step):
                self.miner.refresh(step)
        return self.feed.batches(step * accumulate, stop * accumulate, self.progress.position), stop

    def _step(self, taken: Sequence[Batch], step: int, rate: float) -> StepResult:
        """One optimizer step; what was skipped on the way to its batches is noted."""
        for batch in taken:
            if batch.problems:
                self.skipped.add(self.feed.name, batch.problems)
        return self.step(taken, step, rate)

    def _log(self, ticker: Ticker, result: StepResult, rate: float, pairs_per_second: float) -> None:
        progress = self.progress
        means = {name: statistics.fmean(step[name] for step in progress.window) for name in progress.window[0]}
        with torch.no_grad():
            values = {**means, **self.method.metrics(result.views)}
        ticker.show(progress.step, {**values, "pairs/s": pairs_per_second})
        epoch = progress.step * self.config.training.accumulate / len(self.feed)
        extra = {"lr": rate, "grad_norm": result.norm, "pairs_per_second": pairs_per_second}
        self.metrics.write(progress.step, {"epoch": round(epoch, 4), **values, **extra})
        progress.window = []

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.steps

    def _judge_and_save(self) -> bool:
        """Make the evaluation that is due, if one is; returns whether it was the best so far, and so has been saved."""
        improved = False
        if not self.progress.judged:
            improved = self._evaluate()
            self.progress.judged = True
            if improved:
                self._save()
        return improved

    def _save_what_is_new(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        step = self.progress.step
        if step and not (self.folder / "checkpoints" / f"step-{step:08d}").is_dir():
            self._save()

    def _save(self) -> None:
        require_finite_weights(self.method, self.device)
        self.progress.scaler = self.step.scaler.state_dict()
        for embedder in embedders(self.method).values():  # a checkpoint has those of one process, with which all go on
            distributed.same_buffers(embedder)
        keep = self.config.training.keep
        save_checkpoint(self.folder, self.method, self.step.optimizer, self.progress, keep=keep, average=self.average)

    def _resume(self, checkpoint: Path, before: Config) -> None:
        """Go on from a checkpoint, by a config that may differ from the one ``before`` in what is yet to come."""
        self.progress = load_checkpoint(checkpoint, self.method, self.step.optimizer, self.average)
        self.progress.precision = self.precision
        self.step.scaler.load_state_dict(self.progress.scaler)
        if self.progress.data != self.feed.fingerprint:
            raise MmclError(
                f"{self.feed.name}: changed since the run in {self.folder} began; start a new one with --out"
            )
        done, settings = self.progress.step, self.config.training
        if done > self.steps:
            raise MmclError(
                f"training.epochs: {settings.epochs:g} are {self.steps} steps, of which {self.folder} has done {done} "
                f"already; set it to {before.training.epochs:g}, as it was, or more"
            )
        steps = self._steps_of(before)
        old, new = (learning_rate(settings, done, total) for total in (steps, self.steps))
        if old != new and self.main:
            log.warning(
                "training.epochs was %g and is %g: %d steps instead of %d. The learning rate follows the new schedule "
                "from step %d on (%.3g instead of %.3g), which a run of that length from its start would have done all "
                "along",
                *(before.training.epochs, settings.epochs, self.steps, steps, done + 1, new, old),
            )
        if _chosen_by(before) != _chosen_by(self.config):
            self.progress.best = self.progress.best_step = None
        if self.main:
            write_config(self.folder, self.config)

    def _steps_of(self, config: Config) -> int:
        """Optimizer steps that ``config`` makes of the feed."""
        return max(1, round(config.training.epochs * len(self.feed) / config.training.accumulate))

    def _judged_weights(self) -> AbstractContextManager[None]:
        """Within, the method holds the weights that are judged and saved."""
        return self.average.applied() if self.average else nullcontext()

    def _judge(self, warn: bool = True) -> dict[str, float]:
        """Every source's metrics of the weights as they are; empty in all processes but the first."""
        values: dict[str, float] = {}
        for name, judge in self.judges.items():
            values |= {f"{name}/{key}": value for key, value in judge.evaluate(self.method.encoder, warn=warn).items()}
            distributed.barrier()  # process 0 judges alone what all have embedded
        return values

    def _judge_start(self) -> None:
        """Note the metrics before the first step, for the report to compare with."""
        if self.judges and self.progress.step == 0 and (values := self._judge(warn=False)):
            self.metrics.write(0, {"start": values, "precision": self.method.encoder.compute})
        self.method.train()

    def _evaluate(self) -> bool:
        """Judge the model on every source; whether the named metric is the best so far."""
        if not self.judges:
            return False
        with self._judged_weights():
            values = self._judge()
        improved = False
        if self.main:
            precision = self.method.encoder.compute
            self.metrics.write(self.progress.step, {"evaluation": values, "precision": precision})
            best = self.config.evaluation.best
            shown = {key: value for key, value in values.items() if key == best or (not best and key.endswith(SHOWN))}
            log.info(
                "step %d, judged in %s  %s",
                self.progress.step,
                precision,
                "  ".join(f"{key} {value:.4f}" for key, value in shown.items()),
            )
            improved = self._is_best(values)
        return distributed.same_everywhere(improved, self.device)

    def _is_best(self, values: dict[str, float]) -> bool:
        name = self.config.evaluation.best
        if name is None or not is_better(name, values, {} if (best := self.progress.best) is None else {name: best}):
            return False
        self.progress.best, self.progress.best_step = values[name], self.progress.step
        return True

    def _finish(self) -> None:
        """Take the best weights, if a metric was named, and write the model folder."""
        step = self.progress.step
        if self.progress.best_step is not None and self.progress.best_step != step:
            step = self.progress.best_step
            load_checkpoint(self.folder / "checkpoints" / f"step-{step:08d}", self.method, None, self.average)
        with self._judged_weights(), self._ensemble(step):
            sharding.unshard(self.method)
            if self.main:
                self._tell_of_skipped()
                encoder = finish_encoder(self.method)
                encoder.card = card_of(self, step)
                encoder.save(self.folder / "model")
                for file in (self.folder / "features").glob("*.npy"):
                    file.unlink()
                log.info("model written to %s", self.folder / "model")
            distributed.barrier()

    def _tell_of_skipped(self) -> None:
        """Of a stream nobody knows beforehand what cannot be read."""
        self.skipped.merge()
        skipped = self.skipped.count(self.feed.name)
        if skipped > len(self.feed.problems()):
            log.warning("%s: %d samples skipped, listed in %s", self.feed.name, skipped, self.skipped.path)

    @contextmanager
    def _ensemble(self, step: int) -> Iterator[None]:
        """Within, the method holds the ensemble with its starting weights that judges best, if any was asked for."""
        shares, best = self.config.training.wise_ft, self.config.evaluation.best
        if not shares:
            yield
            return
        start = load_start(self.method, learned_names(self.method), self.folder / START)
        share, table = choose_share(self.method, start, shares, self._judge, best)
        if self.main:
            self.metrics.write(step, {"evaluation": table[share], "wise_ft": share})
            told = ", ".join(f"{alpha:g}: {values[best]:.4f}" for alpha, values in table.items() if best in values)
            log.info("weight-space ensemble: share %g of the learned weights is saved  %s", share, told)
        with interpolated(self.method, start, share):
            yield

    def _open_feed(self, sources: Sequence[TrainSourceConfig]) -> Feed:
        def make() -> Feed:
            return open_feed(
                sources,
                self.method.reading,
                self.config,
                self.scratch,
                augmented=True,
                device=self.device,
                show_progress=self.show_progress,
            )

        feed = self._opened(make)
        self._note_skipped(feed.name, feed.problems())
        return feed

    def _open_miner(self) -> Miner:
        return Miner(self.feed, self.method, self.config, self.folder, self.precision, self.steps)

    def _open_judge(self, name: str, source: JudgedSourceConfig) -> Judge:
        def make() -> Judge:
            return open_judge(
                name,
                source,
                self.method.encoder,
                self.config,
                self.scratch,
                device=self.device,
                show_progress=self.show_progress,
            )

        judge = self._opened(make)
        self._note_skipped(judge.source, judge.problems())
        if self.main and isinstance(judge, PairsJudge) and isinstance(self.feed, Table):
            judge.warn_of_shared(name, self.feed)
        return judge

    def _opened(self, make: Callable[[], T]) -> T:
        """Process 0 fills the caches, then the others find them full."""
        self.method.eval()  # frozen towers run
        made = make() if self.main else None
        distributed.barrier()
        made = make() if made is None else made
        distributed.barrier()
        return made

    def _note_skipped(self, source: str, problems: list[dict[str, str]]) -> None:
        if self.main and self.skipped.add(source, problems):
            log.warning("%s: %d rows skipped, listed in %s", source, len(problems), self.skipped.path)

    def diverged(self, error: NotFiniteError) -> DivergedError:
        """What a run says that ends so; the rows of the batch, if it was one, are written to ``diverged.json``."""
        step, rows = self.progress.step, ""
        if error.batch is not None:
            step += 1
            ids = distributed.gather_lists(self.feed.names(error.batch))
            path = self.folder / "diverged.json"
            if self.main:
                write_json(path, {"step": step, "what": error.what, "rows": ids})
            rows = f"the batch's row ids are in {path} (first: {', '.join(ids[:3])}); "
        if not step:
            return DivergedError(f"{self.folder}: {error} before the first step, by the model that it starts from")
        checkpoints = list_checkpoints(self.folder)
        last = checkpoints[-1] if checkpoints else "none yet"
        if not self.progress.step and error.what == "loss":  # at any rate, nothing has been learned yet
            return DivergedError(
                f"{self.folder}: {error} at step 1, by the model that it starts from or by what is in the batch; {rows}"
                "look at both"
            )
        return DivergedError(
            f"{self.folder}: diverged: {error} at step {step}; {rows}last good checkpoint: {last}; start anew with a "
            "lower training.lr"
        )


def choose_precision(wanted: str, device: torch.device, checkpoints: Sequence[Path]) -> str:
    """The precision of the towers, in all processes, which call this together.

    ``auto`` is what the run began in if it is resumed from ``checkpoints``, so that it goes on in it on other machines;
    else bfloat16, where the devices of all processes multiply it natively.
    """
    if wanted != "auto":
        return wanted
    begun = recorded_precision(checkpoints[-1]) if checkpoints else ""
    here = resolve_precision(wanted, device)
    if distributed.largest(float(here == "float32"), device):
        here = "float32"
    if begun and begun != here and distributed.rank() == 0:
        slow = f", which not every {device.type} here multiplies natively: it is slow" if begun == "bfloat16" else ""
        log.warning("resumed in %s, in which the run began%s", begun, slow)
    return begun or here


def _chosen_by(config: Config) -> tuple[str | None, JudgedSourceConfig | None]:
    """The metric by which the model is chosen, and the source that it is measured on."""
    best = config.evaluation.best
    return best, config.evaluation.sources.get(best.partition("/")[0]) if best else None


def _start_device(name: str, timeout: timedelta) -> torch.device:
    """The device of this process, which joins the others' group if it was launched with them.

    Args:
        name: as ``training.device``.
        timeout: how long processes wait for each other's share of a computation; at a barrier they wait on.

    Raises:
        MmclError: there is no such device, an earlier run has joined the processes for another, or not all come.
    """
    device = pick_device(name)
    if device.type == "cpu":  # a launcher may well fork processes that use a GPU
        ready_after_fork(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        here = PartialState(cpu=device.type == "cpu", timeout=timeout)
    except dist.DistError as error:
        raise MmclError(
            f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}: the others did not all join within "
            f"training.timeout, {timeout.total_seconds() / 60:g} minutes; their own last lines tell what keeps them"
        ) from error
    if here.num_processes == 1:  # what it says of the device is that of the first run in this process
        return device
    if here.device.type != device.type:
        raise MmclError(
            f"training.device: these processes were joined for {here.device.type}, not {device.type}; start others"
        )
    return here.device

"""The training loop."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmcl.config.data import TrainSourceConfig
from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.config.schema import Config
from mmcl.data.batches.batch import Batch
from mmcl.data.batches.feed import Feed, open_feed
from mmcl.data.batches.table import Table
from mmcl.evaluation.evaluator import Evaluator, Setup, open_evaluator
from mmcl.formats.folder import save
from mmcl.methods import Method, Step
from mmcl.models.embedder import embedders
from mmcl.runtime import distributed, sharding
from mmcl.runtime.errors import MmclError
from mmcl.runtime.memory import reused_memory
from mmcl.training.announce import announce, card_of, log_chosen, log_speed, require_full_steps
from mmcl.training.build import add_probe, build_method, finish_encoder, probe_named, probed, require_tokens
from mmcl.training.callbacks.base import Callback
from mmcl.training.callbacks.collapse import CollapseWarning
from mmcl.training.callbacks.ensemble import WeightEnsemble
from mmcl.training.callbacks.evaluations import Evaluations
from mmcl.training.callbacks.mining import Miner
from mmcl.training.callbacks.skipped import SkippedSamples
from mmcl.training.checkpoint import Progress, checkpoint_path, learned_names, load_checkpoint, save_checkpoint
from mmcl.training.clock import Clock
from mmcl.training.devices import choose_precision, outermost, set_precision, start_device
from mmcl.training.interrupt import Interrupts
from mmcl.training.logs import MetricsLog, Ticker
from mmcl.training.optimization.auto_micro_batch import find_micro_batch
from mmcl.training.optimization.average import WeightAverage
from mmcl.training.optimization.batch_norm import prepare_batch_norm
from mmcl.training.optimization.check_method import check_metrics
from mmcl.training.optimization.not_finite import require_finite_weights
from mmcl.training.optimization.optim import build_optimizer, freeze_groups, learning_rate
from mmcl.training.optimization.readout import Readout
from mmcl.training.optimization.step import StepResult, TrainStep, parallel_method
from mmcl.training.run import Run
from mmcl.training.run_folder import SkippedList, prepare_folder, write_config
from mmcl.training.trackers import require_trackers

log = logging.getLogger("mmcl")
T = TypeVar("T")


class Trainer:
    """One run in progress.

    Args:
        config: of the run.
        folder: of the run.
        resume: go on from the newest checkpoint there.
        features: compute those of frozen towers, once, as training needs them.
        show_progress: as :func:`mmcl.training.train`.

    Attributes:
        callbacks: what is done beside the steps.
    """

    def __init__(
        self, config: Config, folder: Path, *, resume: bool, features: bool = True, show_progress: bool | None = None
    ) -> None:
        self.config = config
        self.folder = folder
        self.scratch = folder / "features" if features else None
        self.show_progress = show_progress
        settings = config.training
        require_trackers(settings.trackers)
        self.device = start_device(settings.device, timedelta(minutes=settings.timeout))
        self.main = distributed.rank() == 0
        checkpoints = prepare_folder(folder, config, resume)
        self.skipped = SkippedList(folder)

        self.method: Method = build_method(config, folder).to(self.device)
        precision = choose_precision(settings.precision, self.method.encoder, self.device, checkpoints)
        set_precision(self.method, precision)
        if settings.precision == "auto":
            config = self._resolve(precision=precision)
            settings = config.training
        prepare_batch_norm(self.method, settings, self.device)
        require_tokens(self.method, config)
        self.feed = self._open_feed([config.data.train, *config.data.mix])
        add_probe(self.method, config, self.feed)
        if self.method.counted is not None:
            self.method.count(torch.from_numpy(self.feed.identities(self.method.counted)).to(self.device))
        self.evaluators = {name: self._open_evaluator(name, of) for name, of in config.evaluation.sources.items()}
        self.steps = self._steps_of(config)
        require_full_steps(settings, len(self.feed))
        if not checkpoints:
            self.method.require_steps(self.steps)
        self.miner = self._opened(self._open_miner) if config.data.mining else None

        freeze_groups(self.method, settings)
        wrapped = parallel_method(self.method, settings, self.device)
        optimizer = build_optimizer(self.method, settings)
        torch.manual_seed(config.seed + 1 + distributed.rank())  # dropout differs between processes
        decay = settings.average
        self.average = WeightAverage(self.method, learned_names(self.method), decay) if decay else None
        self.step = TrainStep(
            self.method, wrapped, optimizer, settings, self.device, outermost(precision), self.average
        )
        self.progress = Progress(data=self.feed.fingerprint)
        self._numbers: list[Readout] = []  # of the steps that are not yet in the progress's window
        if checkpoints:
            self._resume(checkpoints[-1], Run(folder).config)
        self.metrics = MetricsLog(config, folder, active=self.main, resume_step=self.progress.step)
        self.callbacks = self._callbacks()
        for callback in self.callbacks:
            callback.on_setup(self.progress)

    def fit(self) -> None:
        """Train to the last step and write the model folder.

        Raises:
            NotFiniteError: the loss, the gradient, the weights or the vectors stopped being finite.
            KeyboardInterrupt: as it comes, but between two steps; a checkpoint of what was learned has been written.
        """
        with Interrupts() as interrupts, reused_memory():
            try:
                self._fit(interrupts)
            except KeyboardInterrupt:
                if not interrupts.torn and distributed.world_size() == 1:
                    self._save_what_is_new()
                raise

    def _fit(self, interrupts: Interrupts) -> None:
        self.method.train()
        settings, progress, accumulate = self.config.training, self.progress, self.config.training.accumulate
        if settings.micro_batch == "auto":
            self._find_micro_batch()
        if self.main:
            announce(self.config, self.method, self.feed, self.device, self.steps, progress.step)
        ticker = Ticker(self.steps, progress.step, show=self.show_progress if self.main else False)
        batches: Generator[Batch, None, None] = (_ for _ in ())
        until = progress.step  # the first are asked for in the loop, as all are
        clock = Clock(self.device)
        for callback in self.callbacks:
            callback.on_fit_start(progress)
        started = time.monotonic() - progress.seconds
        try:
            with clock.excluded():
                self._between_steps()  # an interrupted run may have left an evaluation to make
            for step in range(progress.step, self.steps):
                if step == until:
                    batches.close()
                    with clock.excluded():
                        batches, until = self._batches()
                rate = learning_rate(settings, step, self.steps)
                with clock.waiting():
                    taken = list(itertools.islice(batches, accumulate))
                with interrupts.held():
                    with clock.step():
                        result = self._step(taken, step, rate)
                    self._numbers.append(result.numbers)
                    progress.position = taken[-1].position
                    progress.step, progress.seconds = step + 1, time.monotonic() - started
                    for callback in self.callbacks:
                        callback.after_update(progress)
                    if progress.step % settings.log_every and progress.step < self.steps:
                        ticker.show(progress.step)
                    else:
                        self._log(ticker, result, rate, clock.rate() * settings.batch_size * accumulate)
                    del result
                    if shares := clock.tick():
                        self.metrics.write(progress.step, {"time": shares._asdict()})
                with clock.excluded():
                    due = progress.step % settings.save_every == 0 or progress.step == self.steps
                    if not self._between_steps() and due:
                        self._save()
            batches.close()
            ticker.close()
            if self.main:
                log_speed(self.folder, self.steps, progress.seconds)
            self._finish()
        finally:
            batches.close()
            ticker.close()
            self.metrics.close()

    def _find_micro_batch(self) -> None:
        """Put the micro-batch that fits into memory in the place of ``auto``, in the run's ``config.yaml`` as well."""
        numbers = itertools.count()

        def run(batch: Batch) -> StepResult:
            return self.step([batch] * min(2, self.config.training.accumulate), Step(next(numbers), self.steps), 0.0)

        found = find_micro_batch(self.step, self.feed, run, [callback.full_load() for callback in self.callbacks])
        self.step.settings = self._resolve(micro_batch=found).training

    def _resolve(self, **settings: Any) -> Config:
        """Put what was found in the place of ``auto`` in the section ``training``, in the run's ``config.yaml`` too."""
        self.config = self.config.model_copy(update={"training": self.config.training.model_copy(update=settings)})
        if self.main:
            write_config(self.folder, self.config)
        return self.config

    def _batches(self) -> tuple[Generator[Batch, None, None], int]:
        """The batches to come, and the step before which new ones are asked for."""
        step, stop, accumulate = self.progress.step, self.steps, self.config.training.accumulate
        for callback in self.callbacks:
            stop = callback.prepare_until(step, stop)
            callback.before_batches(step)
        return self.feed.batches(step * accumulate, stop * accumulate, self.progress.position), stop

    def _step(self, taken: Sequence[Batch], step: int, rate: float) -> StepResult:
        """One optimizer step."""
        for callback in self.callbacks:
            callback.before_step(taken)
        return self.step(taken, Step(step, self.steps), rate)

    def _read_numbers(self) -> Progress:
        """The progress, with the numbers of all steps since the last line of metrics in its window."""
        self.progress.window += [numbers.values() for numbers in self._numbers]
        self._numbers.clear()
        return self.progress

    def _log(self, ticker: Ticker, result: StepResult, rate: float, pairs_per_second: float) -> None:
        progress = self._read_numbers()
        means = {name: statistics.fmean(step[name] for step in progress.window) for name in progress.window[0]}
        with torch.no_grad():
            metrics = self.method.metrics(result.outputs)
        check_metrics(self.method, metrics, means)
        values = {**means, **metrics}
        ticker.show(progress.step, {**values, "rows/s": pairs_per_second})
        epoch = progress.step * self.config.training.accumulate / len(self.feed)
        extra = {"lr": rate, "grad_norm": result.norm, "pairs_per_second": pairs_per_second}
        self.metrics.write(progress.step, {"epoch": round(epoch, 4), **values, **extra})
        progress.window = []
        for callback in self.callbacks:
            callback.on_log(progress, result.outputs)

    def _between_steps(self) -> bool:
        """Call the callbacks between two steps; returns whether they asked for a checkpoint, which then is written."""
        wanted = [callback.between_steps(self.progress) for callback in self.callbacks]
        if any(wanted):
            self._save()
        return any(wanted)

    def _save_what_is_new(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        step = self.progress.step
        if step and not checkpoint_path(self.folder, step).is_dir():
            self._save()

    def _save(self) -> None:
        self.step.require_finite()
        require_finite_weights(self.method, self.device)
        self._read_numbers().scaler = self.step.scaler.state_dict()
        for embedder in embedders(self.method).values():  # a checkpoint has those of one process, with which all go on
            distributed.broadcast_buffers(embedder)
        keep = self.config.training.keep
        save_checkpoint(self.folder, self.method, self.step.optimizer, self.progress, keep=keep, average=self.average)

    def _resume(self, checkpoint: Path, before: Config) -> None:
        """Go on from a checkpoint, by a config that may differ from the one ``before`` in what is yet to come."""
        self.progress = load_checkpoint(checkpoint, self.method, self.step.optimizer, self.average)
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

    def _finish(self) -> None:
        """Write the model folder."""
        step = self.progress.step
        with ExitStack() as stack:
            for callback in self.callbacks:
                step = stack.enter_context(callback.final_weights(step))
            sharding.unshard(self.method)
            for callback in self.callbacks:
                callback.on_fit_end()
            if self.main:
                encoder = finish_encoder(self.method)
                skipped, seconds = self.skipped.count(self.feed.name), self.progress.seconds
                encoder.card = card_of(
                    self.config, self.method, self.feed, self.folder, step, self.steps, seconds, skipped
                )
                save(encoder, self.folder / "model")
                log_chosen(encoder.card)
                for file in (self.folder / "features").glob("*.npy"):
                    file.unlink()
                log.info("model written to %s", self.folder / "model")
            distributed.barrier()

    def _callbacks(self) -> list[Callback]:
        config, every = self.config, self.config.evaluation.every
        evaluations = Evaluations(
            self.evaluators,
            self.method,
            self.average,
            config.evaluation,
            every=max(1, round(every * len(self.feed) / config.training.accumulate)) if every else self.steps,
            steps=self.steps,
            folder=self.folder,
            metrics=self.metrics,
        )
        callbacks: list[Callback] = [
            SkippedSamples(self.feed, self.skipped),
            evaluations,
            CollapseWarning(self.method, self.steps),
        ]
        if config.training.wise_ft:
            callbacks.append(WeightEnsemble(config.training.wise_ft, evaluations, self.folder))
        return callbacks if self.miner is None else [*callbacks, self.miner]

    def _open_feed(self, sources: Sequence[TrainSourceConfig]) -> Feed:
        reading, sources = probed(self.method.reading, sources, self.config)

        def make() -> Feed:
            return open_feed(
                sources,
                reading,
                self.config,
                self.scratch,
                augmented=True,
                device=self.device,
                show_progress=self.show_progress,
            )

        with probe_named():
            feed = self._opened(make)
        self._note_skipped(feed.name, feed.problems())
        return feed

    def _open_miner(self) -> Miner:
        return Miner(
            self.feed, self.method, self.config, self.folder, outermost(self.config.training.precision), self.steps
        )

    def _open_evaluator(self, name: str, source: EvaluationSourceConfig) -> Evaluator:
        setup = Setup(name, self.method.encoder, self.config, self.scratch, self.device, self.show_progress)
        evaluator = self._opened(lambda: open_evaluator(source, setup))
        self._note_skipped(evaluator.source, evaluator.problems())
        if self.main and isinstance(self.feed, Table):
            evaluator.warn_of_shared(name, self.feed)
        return evaluator

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


def _chosen_by(config: Config) -> tuple[str | None, EvaluationSourceConfig | None]:
    """The metric by which the model is chosen, and the source that it is measured on."""
    best = config.evaluation.best
    return best, config.evaluation.sources.get(best.partition("/")[0]) if best else None

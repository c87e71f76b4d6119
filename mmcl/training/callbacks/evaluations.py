"""Evaluating the model while it learns, and taking the best of its checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from mmcl.config.evaluation import EvaluationConfig
from mmcl.evaluation.evaluator import Evaluator, evaluator_of
from mmcl.methods import Method
from mmcl.runtime import distributed
from mmcl.runtime.device import resolve_precision
from mmcl.training.callbacks.base import Callback
from mmcl.training.checkpoint import Progress, checkpoint_path, load_checkpoint
from mmcl.training.logs import MetricsLog
from mmcl.training.optimization.average import WeightAverage

log = logging.getLogger("mmcl")


class Evaluations(Callback):
    """Evaluates before the first step, every so many steps and after the last, and finds the best step.

    Args:
        evaluators: by the names of their sources.
        method: whose encoder is evaluated.
        average: of its weights, which is then evaluated in their place.
        config: names the metric to choose the model by, if any.
        every: steps between two evaluations; the last step is evaluated besides.
        steps: of the run.
        folder: of the run.
        metrics: where the results are written.
    """

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
        method: Method,
        average: WeightAverage | None,
        config: EvaluationConfig,
        *,
        every: int,
        steps: int,
        folder: Path,
        metrics: MetricsLog,
    ) -> None:
        self.evaluators, self.method, self.average = evaluators, method, average
        self.config, self.best, self.every, self.steps = config, config.best, every, steps
        self.folder, self.metrics = folder, metrics
        self._best_step: int | None = None

    def evaluate(self, warn: bool = True) -> dict[str, float]:
        """The metrics of the weights as they are, as ``SOURCE/metric``; empty in all processes but the first."""
        values: dict[str, float] = {}
        for name, evaluator in self.evaluators.items():
            found = evaluator.evaluate(self.method.encoder, warn=warn)
            values |= {f"{name}/{key}": value for key, value in found.items()}
            distributed.barrier()  # process 0 computes alone on what all have embedded
        return values

    def on_fit_start(self, progress: Progress) -> None:
        """Note the metrics before the first step of the run, for the report to compare with."""
        if self.evaluators and progress.step == 0 and (values := self.evaluate(warn=False)):
            self.metrics.write(0, {"start": values, "precision": resolve_precision("auto", self.method.encoder.device)})
        self.method.train()

    def after_update(self, progress: Progress) -> None:
        progress.judged = progress.step % self.every != 0 and progress.step != self.steps

    def between_steps(self, progress: Progress) -> bool:
        """Make the evaluation that is due, if one is; returns whether it was the best so far."""
        improved = False
        if not progress.judged:
            improved = bool(self.evaluators) and self._evaluate(progress)
            progress.judged = True
        self._best_step = progress.best_step
        return improved

    @contextmanager
    def final_weights(self, step: int) -> Iterator[int]:
        """The best weights, if a metric is named to choose by; the average of them, if there is one."""
        if self._best_step is not None and self._best_step != step:
            step = self._best_step
            load_checkpoint(checkpoint_path(self.folder, step), self.method, None, self.average)
        elif self.best is not None and self._best_step is None and distributed.rank() == 0:
            log.warning(
                "evaluation.best: no evaluation measured %s, and the model is that of the last step, %d",
                *(self.best, step),
            )
        with self._evaluated_weights():
            yield step

    def _evaluated_weights(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average else nullcontext()

    def _evaluate(self, progress: Progress) -> bool:
        with self._evaluated_weights():
            values = self.evaluate()
        improved = False
        if distributed.rank() == 0:
            precision, best = resolve_precision("auto", self.method.encoder.device), self.best
            self.metrics.write(progress.step, {"evaluation": values, "precision": precision})
            shown = {key: value for key, value in values.items() if (key == best if best else self._is_headline(key))}
            log.info(
                "step %d, judged in %s  %s",
                progress.step,
                precision,
                "  ".join(f"{key} {value:.4f}" for key, value in shown.items()),
            )
            if best is not None and self.is_better(values, {} if progress.best is None else {best: progress.best}):
                progress.best, progress.best_step, improved = values[best], progress.step, True
        return distributed.broadcast_bool(improved, self.method.encoder.device)

    def is_better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Whether ``new`` has the better value of the metric to choose by; False if none is named.

        Where the metric is undefined it is missing, and worse than any value.
        """
        best = self.best
        if best is None or best not in new or best not in old:
            return best in new
        higher = evaluator_of(best, self.config).higher_is_better(best)
        return new[best] > old[best] if higher else new[best] < old[best]

    def _is_headline(self, key: str) -> bool:
        return evaluator_of(key, self.config).is_headline(key)

"""What a run says of itself: before it begins, and in the card of its model."""

from __future__ import annotations

import logging
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmcl.config.schema import Config
from mmcl.config.training import TrainingConfig
from mmcl.data.batches.feed import Feed
from mmcl.evaluation.evaluator import summary
from mmcl.formats.export import TARGETS, cannot_export
from mmcl.methods import Method
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import duration
from mmcl.training.devices import describe_precision
from mmcl.training.optimization.batch_norm import warn_of_statistics
from mmcl.training.optimization.optim import describe_learning, peak_rate
from mmcl.training.run import Run

log = logging.getLogger("mmcl")


def announce(config: Config, method: Method, feed: Feed, device: torch.device, steps: int, done: int) -> None:
    """Log what is learned, from what, with how many negatives and how far it has come.

    Args:
        config: of the run.
        method: ready to train.
        feed: of the training data.
        device: of this process.
        steps: of the run.
        done: of them.
    """
    settings, world = config.training, distributed.world_size()
    log.info(
        "%s on %d rows of %s: %d × %s%s, %s, global batch %d%s, %s, %d steps, %d of them done",
        config.method.name,
        feed.samples,
        feed.name,
        world,
        device.type,
        f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else "",
        describe_precision(settings.precision),
        settings.batch_size,
        f" and {settings.accumulate} of them a step" if settings.accumulate > 1 else "",
        method.compared_with(feed.extra_count),
        steps,
        done,
    )
    log.info("learned parameters: %s", describe_learning(method))
    if settings.lr_scaling != "none":
        rows = settings.batch_size * settings.accumulate
        log.info("learning rate at its peak: %.4g (training.lr for 256 rows, scaled to %d)", peak_rate(settings), rows)
    if settings.warmup >= steps:
        log.warning(
            "training.warmup is %d of %d steps: the learning rate never reaches training.lr",
            settings.warmup,
            steps,
        )
    warn_of_statistics(method, settings)
    _warn_of_test_rows(config)
    encoder = method.encoder
    possible = [target for target in TARGETS if cannot_export(encoder, target) is None]
    others = [target for target in TARGETS if target not in possible]
    log.info(
        "the model can be exported to %s%s",
        ", ".join(possible) or "no other library",
        f", not to {', '.join(others)} (mmcl config check says why)" if others else "",
    )


def require_full_steps(settings: TrainingConfig, batches: int) -> None:
    """Raise ``MmclError`` where a single step takes more batches than the run has; warn where rounding adds some.

    Args:
        settings: of the training.
        batches: of an epoch.
    """
    count, epochs = settings.accumulate, settings.epochs
    asked = max(1, math.ceil(epochs * batches))
    if count > asked:
        raise MmclError(
            f"training.accumulate: {count} batches a step, but training.epochs: {epochs:g} has {asked}, an epoch being "
            f"{batches} of training.batch_size {settings.batch_size}; lower it to {asked} at most, or raise the epochs"
        )
    taken = max(1, round(epochs * batches / count)) * count
    if taken > asked and distributed.rank() == 0:
        log.warning(
            "training.accumulate: steps of %d batches take %d of them in all, more than the %d of %g epochs: some rows "
            "come once more",
            *(count, taken, asked, epochs),
        )


def log_speed(folder: Path, steps: int, seconds: float) -> None:
    """Log how long a run took, and its rate, which is that of its report."""
    rates = [line["pairs_per_second"] for line in Run(folder).lines() if "pairs_per_second" in line]
    speed = f", {statistics.median(rates):,.0f} rows/s (median)" if rates else ""
    log.info("%d steps in %s%s", steps, duration(seconds), speed)


def card_of(
    config: Config,
    method: Method,
    feed: Feed,
    folder: Path,
    step: int,
    steps: int,
    seconds: float,
    skipped: int,
) -> dict[str, Any]:
    """What the model card says beside the architecture.

    Args:
        config: of the run.
        method: that was trained.
        feed: of the training data.
        folder: of the run.
        step: that the weights are of.
        steps: of the run.
        seconds: that training took.
        skipped: training samples left out.
    """
    data = {"rows": feed.samples, "source": feed.name, "skipped": skipped}
    keys = ("batch_size", "epochs", "lr", "weight_decay", "schedule")
    training: dict[str, Any] = {
        "method": config.method.name,
        "step": step,
        "steps": steps,
        "precision": describe_precision(config.training.precision),
    }
    training |= method.card()
    settings = config.training.model_copy(update={"lr": peak_rate(config.training)})
    training |= {key: getattr(settings, key) for key in keys} | {"seconds": round(seconds, 1)}
    card: dict[str, Any] = {"data": data, "training": training}
    lines = Run(folder).lines()
    if chosen := _chosen(config, lines, step):
        card["chosen"] = chosen
    for line in lines:
        if line["step"] == step and "evaluation" in line:
            if "wise_ft" in line:
                card["training"]["wise_ft"] = line["wise_ft"]
            card["scores"] = summary(line["evaluation"], config.evaluation)
    return card


def log_chosen(card: Mapping[str, Any]) -> None:
    """Log the best and the last value of the metric that the model was chosen by, each by its name, if it was."""
    if chosen := card.get("chosen"):
        log.info(
            "%s: best %.4f at step %d, which is the model; last %.4f at step %d",
            *(chosen[key] for key in ("by", "best", "best step", "last", "last step")),
        )


def _chosen(config: Config, lines: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """The best and the last value of ``evaluation.best``, where they are measured; empty if nothing is chosen by."""
    best = config.evaluation.best
    measured = [line for line in lines if best in line.get("evaluation", {}) and "wise_ft" not in line]
    values = {line["step"]: line["evaluation"][best] for line in measured}
    if best is None or step not in values:
        return {}
    last = max(values)
    by = f"{best}, on {_rows_of(config, best)}"
    return {"by": by, "best": values[step], "best step": step, "last": values[last], "last step": last}


def _rows_of(config: Config, key: str) -> str:
    """What a metric is measured on, in words."""
    source = config.evaluation.sources[key.partition("/")[0]]
    return source.source + (f" ({source.split})" if source.split else "")


def _warn_of_test_rows(config: Config) -> None:
    """Log a warning if the rows by which the model is chosen are called test rows."""
    best = config.evaluation.best
    if best is None:
        return
    source = config.evaluation.sources[best.partition("/")[0]]
    words = re.split(r"[^a-z]+", f"{Path(source.source).name} {source.split or ''}".lower())
    if "test" in words:
        log.warning(
            "evaluation.best: the model is chosen by its score on %s, and the best of several scores on test rows is "
            "better than on new rows; choose by validation rows, and judge on the test rows afterwards",
            _rows_of(config, best),
        )

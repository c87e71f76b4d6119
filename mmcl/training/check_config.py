"""What a config would do, found out by reading its data and model, without training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mmcl.config.schema import Config
from mmcl.formats.export import TARGETS, cannot_export
from mmcl.training.devices import describe_precision
from mmcl.training.loop import Trainer
from mmcl.training.optimization.optim import describe_learning
from mmcl.training.trackers import require_trackers


def check_config(config: Config, show_progress: bool | None = None) -> dict[str, Any]:
    """Set up what ``config`` describes as a run does, in a folder that is gone afterwards, and make its first batch.

    Texts and images are read, and kept in the cache for the run to come; features of frozen towers are not computed.

    Args:
        config: of the run.
        show_progress: bars on stderr; for a terminal if absent.

    Returns:
        Facts, in values that JSON can hold.

    Raises:
        MmclError: as :func:`mmcl.training.train` does before its first step.
    """
    require_trackers(config.training.trackers)
    plain = config.model_copy(update={"training": config.training.model_copy(update={"trackers": []})})
    with tempfile.TemporaryDirectory(prefix="mmcl-check-") as folder:
        trainer = Trainer(plain, Path(folder) / "run", resume=False, features=False, show_progress=show_progress)
        try:
            batches = trainer.feed.batches(0, 1)
            try:
                next(batches)
            finally:
                batches.close()
            return _facts(trainer)
        finally:
            trainer.metrics.close()


def _facts(trainer: Trainer) -> dict[str, Any]:
    config, feed, encoder = trainer.config, trainer.feed, trainer.method.encoder
    reasons = {target: cannot_export(encoder, target) for target in TARGETS}
    return {
        "name": config.name,
        "method": config.method.name,
        "data": feed.name,
        "rows": feed.samples,
        "skipped": len(feed.problems()),
        "judged": {
            name: {"data": evaluator.source, "skipped": len(evaluator.problems())}
            for name, evaluator in trainer.evaluators.items()
        },
        "device": trainer.device.type,
        "precision": describe_precision(config.training.precision),
        "batch_size": config.training.batch_size,
        "negatives": trainer.method.compared_with(feed.extra_count),
        "steps": trainer.steps,
        "dim": encoder.dim,
        "learned": describe_learning(trainer.method),
        "exports": [target for target, reason in reasons.items() if reason is None],
        "no_exports": {target: reason for target, reason in reasons.items() if reason is not None},
    }

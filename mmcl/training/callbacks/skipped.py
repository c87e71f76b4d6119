"""Samples that a run leaves out: listed in its folder, and counted in a warning."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mmcl.data.batches.batch import Batch
from mmcl.data.batches.feed import Feed
from mmcl.runtime import distributed
from mmcl.training.callbacks.base import Callback
from mmcl.training.run_folder import SkippedList

log = logging.getLogger("mmcl")


class SkippedSamples(Callback):
    """Lists the samples that a stream could not read on the way to its batches, since nobody knows them beforehand.

    Args:
        feed: of the training data.
        skipped: the list in the run folder.
    """

    def __init__(self, feed: Feed, skipped: SkippedList) -> None:
        self.feed, self.skipped = feed, skipped

    def before_step(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            if batch.problems:
                self.skipped.add(self.feed.name, batch.problems)

    def on_fit_end(self) -> None:
        if distributed.rank() != 0:
            return
        self.skipped.merge()
        count = self.skipped.count(self.feed.name)
        if count > len(self.feed.problems()):
            log.warning("%s: %d samples skipped, listed in %s", self.feed.name, count, self.skipped.path)

"""The contract between the loop and what is done beside its steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from mmcl.data.batches.batch import Batch
from mmcl.methods.outputs import Outputs
from mmcl.training.checkpoint import Progress


class Callback:
    """Work beside the steps of a run. Every method does nothing unless a subclass overrides it.

    All processes call each method together, and those of several callbacks in the order in which the loop has them.
    """

    def on_setup(self, progress: Progress) -> None:
        """Called once, when the run is set up: at its beginning, or where it is resumed."""

    def on_fit_start(self, progress: Progress) -> None:
        """Called before the first step of this process."""

    def prepare_until(self, step: int, stop: int) -> int:
        """The step after ``step``, and at most ``stop``, before which batches are asked for anew."""
        return stop

    def full_load(self) -> AbstractContextManager[None]:
        """A context in which batches carry as much as they ever will, to measure the memory of a step."""
        return nullcontext()

    def before_batches(self, step: int) -> None:
        """Called before batches are prepared, of which the first is that of ``step``."""

    def before_step(self, batches: Sequence[Batch]) -> None:
        """Called with the batches of an optimizer step, before it."""

    def after_update(self, progress: Progress) -> None:
        """Called after an optimizer step, in one with it: an interrupt waits for both."""

    def on_log(self, progress: Progress, outputs: Outputs) -> None:
        """Called after a logged step, with what the loss got of its last batch, without gradient."""

    def between_steps(self, progress: Progress) -> bool:
        """Called after each step, and before the first of this process; returns whether to write a checkpoint."""
        return False

    def final_weights(self, step: int) -> AbstractContextManager[int]:
        """A context in which the method holds the weights to save as the model; gives the step that they are of.

        Args:
            step: that the weights are of outside of the context.
        """
        return nullcontext(step)

    def on_fit_end(self) -> None:
        """Called before the model is written, within :meth:`final_weights`."""

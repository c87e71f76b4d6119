"""What changes in training beside the weights."""

from __future__ import annotations

from torch import nn


class MethodState(nn.Module):
    """State of a method that is no weight of the model: a queue of former embeddings, a momentum copy.

    It is written into checkpoints, and restored from them. It is neither averaged, nor interpolated, nor saved with the
    model; nor does the config's ``training.groups`` see it.
    """

    def checkpointed(self) -> set[str]:
        """Names, in its ``state_dict``, of what a checkpoint needs; by default of all."""
        return set(self.state_dict())


def beside_weights(module: nn.Module) -> dict[str, MethodState]:
    """Every :class:`MethodState` within ``module``, by the prefix, with its dot, that its names have there."""
    return {f"{path}.": part for path, part in module.named_modules() if isinstance(part, MethodState)}

"""Weight-space ensembles of a model before and after fine-tuning (WiSE-FT; Wortsman et al. 2022, arXiv:2109.01903).

Fine-tuning gains on its own data and forgets elsewhere; on the line between the two sets of weights lie models that
keep most of both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.formats.weights import save_tensors
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file
from mmcl.runtime.sharding import full_tensor, sharded_like
from mmcl.training.callbacks.base import Callback
from mmcl.training.callbacks.evaluations import Evaluations
from mmcl.training.checkpoint import Progress, current_names, learned_names
from mmcl.training.optimization.average import holding, live_tensors

START = "start.safetensors"  # the weights before training, in the run folder
log = logging.getLogger("mmcl")


class WeightEnsemble(Callback):
    """Saves the ensemble of the learned and the starting weights that evaluates best.

    Args:
        shares: of the learned weights; see :func:`choose_share`.
        evaluations: of the run, which name the metric to choose by.
        folder: of the run, where the starting weights are kept.
    """

    def __init__(self, shares: Sequence[float], evaluations: Evaluations, folder: Path) -> None:
        self.shares, self.evaluations, self.path = shares, evaluations, folder / START
        self.method = evaluations.method

    def on_setup(self, progress: Progress) -> None:
        if progress.step == 0:
            save_start(self.method, learned_names(self.method), self.path)

    @contextmanager
    def final_weights(self, step: int) -> Iterator[int]:
        evaluations, best = self.evaluations, self.evaluations.best
        start = load_start(self.method, learned_names(self.method), self.path)
        share, table = choose_share(self.method, start, self.shares, evaluations.evaluate, evaluations.is_better)
        if distributed.rank() == 0:
            evaluations.metrics.write(step, {"evaluation": table[share], "wise_ft": share})
            values = ", ".join(f"{alpha:g}: {found[best]:.4f}" for alpha, found in table.items() if best in found)
            log.info("weight-space ensemble: share %g of the learned weights is saved  %s", share, values)
        with interpolated(self.method, start, share):
            yield step


def save_start(module: nn.Module, names: set[str], path: Path) -> None:
    """Write the tensors called ``names`` of a module that has not learned yet. All processes call this together."""
    start = {name: full_tensor(tensor) for name, tensor in live_tensors(module, names).items()}
    if distributed.rank() == 0:
        with atomic_file(path) as beside:
            save_tensors(beside, start)
    distributed.barrier()


def load_start(module: nn.Module, names: set[str], path: Path) -> dict[str, Tensor]:
    """What :func:`save_start` wrote, on the devices of ``module``.

    Raises:
        MmclError: the file is missing or damaged, or was written for another model.
    """
    try:
        start = current_names(load_file(path), module.state_dict())
    except (FileNotFoundError, SafetensorError) as error:
        raise MmclError(
            f"{path}: the starting weights, which training.wise_ft needs, cannot be read ({error}); start a new run"
        ) from None
    live = live_tensors(module, names)
    wrong = [name for name in live if name not in start or start[name].shape != live[name].shape]
    if wrong:
        raise MmclError(f"{path}: the starting weights of another model (first difference: {wrong[0]})")
    return {name: sharded_like(start[name].to(tensor.device), tensor) for name, tensor in live.items()}


@contextmanager
def interpolated(module: nn.Module, start: Mapping[str, Tensor], alpha: float) -> Iterator[None]:
    """Within, ``module`` holds ``(1 - alpha) · start + alpha · its own weights``; afterwards its own again.

    Running statistics are interpolated too; counters are those of the nearer end. Of a low-rank adapter only the second
    factor is, which starts at zero: the change of the weights, their product, is then ``alpha`` times the learned one.

    Args:
        module: after fine-tuning.
        start: name to tensor, of all of its state that learned.
        alpha: 0 is the start and 1 the learned module, both bit for bit.
    """
    live = live_tensors(module, set(start))
    with holding(live, {name: _between(name, start[name], tensor, alpha) for name, tensor in live.items()}):
        yield


def choose_share(
    module: nn.Module,
    start: Mapping[str, Tensor],
    shares: Sequence[float],
    evaluate: Callable[[], Mapping[str, float]],
    is_better: Callable[[Mapping[str, float], Mapping[str, float]], bool],
) -> tuple[float, dict[float, dict[str, float]]]:
    """Evaluate the ensembles of ``shares`` of the learned weights, and choose one. All processes call this together.

    Args:
        module: after fine-tuning.
        start: see :func:`interpolated`.
        shares: at least one.
        evaluate: gives the metrics of ``module`` as it is; only process 0's are looked at.
        is_better: whether the first of two ensembles' metrics are better; of equally good ones the first is chosen.

    Returns:
        The share, and the metrics of each.
    """
    table: dict[float, dict[str, float]] = {}
    chosen = shares[0]
    device = next(iter(start.values())).device
    for alpha in shares:
        with interpolated(module, start, alpha):
            table[alpha] = dict(evaluate())
        better = is_better(table[alpha], table[chosen])
        if distributed.broadcast_bool(better, device):
            chosen = alpha
    return chosen, table


@torch.no_grad()
def _between(name: str, start: Tensor, learned: Tensor, alpha: float) -> Tensor:
    if ".lora_A." in name:
        return learned.clone()
    if not learned.is_floating_point():
        return (start if alpha < 0.5 else learned).clone()
    return torch.lerp(start, learned, alpha)

"""Gradient caching: the gradient of a batch whose activations do not fit into memory (Gao et al. 2021,
arXiv:2101.06983).

A contrastive loss needs the embeddings of the whole batch, but nothing else of the towers; and the towers need the
loss's gradient to their own embeddings, but nothing else of the loss. So micro-batches are embedded without gradient,
the loss of the whole batch gives the gradient to all embeddings, and micro-batches are embedded again, each with the
random numbers of its first time, to take its share of that gradient back through the towers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmcl.data.batches.batch import Batch
from mmcl.methods import Outputs
from mmcl.training.optimization.batch_norm import statistics_restored


def backward(
    method: nn.Module,
    parts: Sequence[Batch],
    outputs_of: Callable[[Batch], Outputs],
    embed: Callable[[Batch], dict[str, Tensor]],
    objective: Callable[[Outputs], Tensor],
    joined: Callable[[bool], AbstractContextManager[None]],
    device: torch.device,
) -> None:
    """Add the gradient of ``objective`` over all ``parts`` to the parameters of ``method``.

    Gradients add up in the order in which autograd adds those of one graph over the same parts, from the last part to
    the first, and are equal to these bit for bit (but for shards, which FSDP adds up by itself). The last part, whose
    turn is the first, keeps its graph, so that k parts cost k forward passes and k - 1 more; one part is an ordinary
    step. Memory is that of one part, of all embeddings, and of two copies of the gradients rather than one.

    Args:
        method: whose random numbers are torch's, and whose running statistics move once a part.
        parts: of the batch of this process.
        outputs_of: gives a part's outputs; called once for each part.
        embed: gives a part's embeddings once more; called for each part but the last.
        objective: the scalar to differentiate, of the outputs of all parts. Called once. It may use parameters.
        joined: context of a forward and a backward pass: whether gradients then meet those of other processes. It is
            True once, for the part that comes last.
        device: whose random state belongs to a pass, beside the CPU's.
    """
    *early, last = parts
    embedded: list[Outputs] = []
    states: list[RandomState] = []
    with joined(not early):
        for part in early:
            states.append(RandomState(device))
            with torch.no_grad():
                embedded.append(outputs_of(part))
        embedded.append(outputs_of(last))
        graph = embedded[-1].embeddings
        shares, of_loss = _gradients(method, embedded, objective)
        with statistics_restored(method):
            _backward_from([(graph[name], gradient) for name, gradient in shares[-1].items()] + of_loss)
    if not early:
        return
    del graph, embedded
    after = RandomState(device)
    with statistics_restored(method):
        for number in reversed(range(len(early))):
            with joined(number == 0):
                states[number].restore()
                graph = embed(early[number])
                _backward_from(
                    [(graph[name], gradient) for name, gradient in shares[number].items()] + _detach_gradients(method)
                )
    after.restore()


def _gradients(
    method: nn.Module, embedded: Sequence[Outputs], objective: Callable[[Outputs], Tensor]
) -> tuple[list[dict[str, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Of the objective: each part's gradients to its own embeddings, and those to the parameters that it uses.

    The last part says which embeddings carry gradient.
    """
    joined = Outputs.cat(embedded).detached()
    last = embedded[-1].embeddings
    leaves = {name: joined.embeddings[name].requires_grad_() for name in last if last[name].requires_grad}
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    value = objective(joined)
    gradients = torch.autograd.grad(value, [*leaves.values(), *learned], allow_unused=True)
    shares: list[dict[str, Tensor]] = [{} for _ in embedded]
    for name, gradient in zip(leaves, gradients, strict=False):
        if gradient is not None:
            having = [number for number, outputs in enumerate(embedded) if name in outputs.embeddings]
            slices = gradient.split([len(embedded[number].embeddings[name]) for number in having])
            for number, piece in zip(having, slices, strict=True):
                shares[number][name] = piece
    of_loss = zip(learned, gradients[len(leaves) :], strict=True)
    return shares, [(parameter, gradient) for parameter, gradient in of_loss if gradient is not None]


def _backward_from(ends: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Backward from tensors, given the gradient to each."""
    if ends:
        torch.autograd.backward([tensor for tensor, _ in ends], [gradient for _, gradient in ends])


def _detach_gradients(method: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Take the gradients away from the parameters of ``method``, for a backward pass that starts from them as well.

    To these sums it adds each use of a weight in turn, where otherwise all uses of a part would be added up first. And
    every parameter takes part in the pass in which processes meet, as DDP demands: also one of the loss alone.
    """
    summed: list[tuple[Tensor, Tensor]] = [
        (p, p.grad) for p in method.parameters() if p.grad is not None and not isinstance(p, DTensor)
    ]
    for parameter, _ in summed:
        parameter.grad = None
    return summed


class RandomState:
    """Where torch's random numbers stand now, on the CPU and on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._host = torch.get_rng_state()
        if device.type == "cuda":
            self._there = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            self._there = torch.mps.get_rng_state()

    def restore(self) -> None:
        """Have the same numbers come again."""
        torch.set_rng_state(self._host)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self._there, self.device)
        elif self.device.type == "mps":
            torch.mps.set_rng_state(self._there)

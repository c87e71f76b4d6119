"""Gradient caching: the gradient of a batch whose activations do not fit into memory (Gao et al. 2021,
arXiv:2101.06983).

A contrastive loss needs the embeddings of the whole batch, but nothing else of the towers; and the towers need the
loss's gradient to their own embeddings, but nothing else of the loss. So micro-batches are embedded without gradient,
the loss of the whole batch gives the gradient to all embeddings, and micro-batches are embedded again, each with the
random numbers of its first time, to take its share of that gradient back through the towers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmcl.config.schema import Config
from mmcl.config.training import TokenLimit
from mmcl.data.shards import is_shards
from mmcl.methods import Batch, Method, Views
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.batch_norm import learning_layers, statistics_stay
from mmcl.training.build import changes

NO_TOKENS = "training.micro_batch counts tokens, but no text passes a tower here; give it a number of rows"


def backward(
    method: nn.Module,
    parts: Sequence[Batch],
    embed: Callable[[Batch], Views],
    objective: Callable[[Views], Tensor],
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
        embed: gives a part's views; called twice for each part but the last.
        objective: the scalar to differentiate, of the views of all parts. Called once. It may use parameters.
        joined: context of a forward and a backward pass: whether gradients then meet those of other processes. It is
            True once, for the part that comes last.
        device: whose random state belongs to a pass, beside the CPU's.
    """
    *early, last = parts
    embedded: list[Views] = []
    states: list[RandomState] = []
    with joined(not early):
        for part in early:
            states.append(RandomState(device))
            with torch.no_grad():
                embedded.append(embed(part))
        graph = embed(last)
        embedded.append(graph)
        shares, of_loss = _gradients(method, embedded, objective)
        with statistics_stay(method):
            _pull([(graph[name], gradient) for name, gradient in shares[-1].items()] + of_loss)
    if not early:
        return
    del graph, embedded
    after = RandomState(device)
    with statistics_stay(method):
        for number in reversed(range(len(early))):
            with joined(number == 0):
                states[number].restore()
                graph = embed(early[number])
                _pull([(graph[name], gradient) for name, gradient in shares[number].items()] + _sums_so_far(method))
    after.restore()


def _gradients(
    method: nn.Module, embedded: Sequence[Views], objective: Callable[[Views], Tensor]
) -> tuple[list[Views], list[tuple[Tensor, Tensor]]]:
    """Of the objective: each part's gradients to its own views, and those to the parameters that the objective uses.

    The last part's views say which ones carry gradient.
    """
    whole = {name: torch.cat([views[name] for views in embedded if name in views]).detach() for name in embedded[-1]}
    leaves = {name: whole[name].requires_grad_() for name, view in embedded[-1].items() if view.requires_grad}
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    value = objective(whole)
    gradients = torch.autograd.grad(value, [*leaves.values(), *learned], allow_unused=True)
    shares: list[Views] = [{} for _ in embedded]
    for name, gradient in zip(leaves, gradients, strict=False):
        if gradient is not None:
            having = [number for number, views in enumerate(embedded) if name in views]
            slices = gradient.split([len(embedded[number][name]) for number in having])
            for number, piece in zip(having, slices, strict=True):
                shares[number][name] = piece
    of_loss = zip(learned, gradients[len(leaves) :], strict=True)
    return shares, [(parameter, gradient) for parameter, gradient in of_loss if gradient is not None]


def _pull(ends: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Backward from tensors, given the gradient to each."""
    if ends:
        torch.autograd.backward([tensor for tensor, _ in ends], [gradient for _, gradient in ends])


def _sums_so_far(method: nn.Module) -> list[tuple[Tensor, Tensor]]:
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


def micro_batches(batch: Batch, limit: int | TokenLimit | None, method: nn.Module) -> list[Batch]:
    """``batch`` in parts of consecutive rows, each within ``limit``, see ``training.micro_batch``; but a row that would
    be alone joins its neighbours where there is batch normalisation: a single row has no statistics.

    Where the towers themselves speak with other processes, all processes get the same number of parts.

    Raises:
        MmclError: the limit is of tokens, and there are none; or another process has more parts than this one rows.
    """
    rows = len(batch.ids)
    if limit is None or rows <= 1:
        sizes = [rows]
    elif isinstance(limit, int):
        count = -(-rows // limit)
        sizes = [rows * (number + 1) // count - rows * number // count for number in range(count)]
    else:
        sizes = list(_filled(_token_counts(batch, method), limit.tokens))
    if learning_layers(method):
        sizes = _without_single_rows(sizes)
    if limit is not None and distributed.world_size() > 1 and any(map(_speaks, method.modules())):
        device = next(method.parameters()).device
        sizes = _at_least(sizes, int(distributed.largest(len(sizes), device)))
    return [batch] if len(sizes) == 1 else batch.split(sizes)


def require_tokens(method: Method, config: Config) -> None:
    """Raise ``MmclError`` where micro-batches are told by tokens, and features stand in for these."""
    kept = method.encoder.embedder("text").frozen and not changes("text", config)
    if isinstance(config.training.micro_batch, TokenLimit) and kept and not is_shards(config.data.train.source):
        raise MmclError(NO_TOKENS)


def _speaks(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule | nn.SyncBatchNorm)


def _token_counts(batch: Batch, method: nn.Module) -> Tensor:
    """(N, T): tokens of the T texts that pass the tower for each row: those of its roles, one that is drawn twice but
    was not changed at random twice over, and its share of the further texts, of which each counts as the longest."""
    counts = [tokens for tensors in batch.inputs.values() if (tokens := _tokens(tensors)) is not None]
    for new, role in method.redrawn.items() if isinstance(method, Method) else ():
        if new not in batch.inputs and (tokens := _tokens(batch.inputs[role])) is not None:
            counts.append(tokens)
    rows = len(batch.ids)
    for tensors in batch.extra.values():
        if (tokens := _tokens(tensors)) is not None and len(tokens):
            counts += [tokens.max().expand(rows)] * -(-len(tokens) // rows)
    if not counts:
        raise MmclError(NO_TOKENS)
    return torch.stack(counts, dim=1)


def _tokens(tensors: dict[str, Tensor]) -> Tensor | None:
    """(N,) of each text, of inputs that are texts."""
    if (mask := tensors.get("attention_mask")) is not None:
        return mask.sum(dim=1)
    if (ids := tensors.get("input_ids")) is not None:
        return torch.full((len(ids),), ids.shape[1], device=ids.device)
    return None


def _filled(counts: Tensor, limit: int) -> Iterator[int]:
    """Sizes of consecutive parts that hold at most ``limit`` tokens, padding included; or a single row."""
    size, longest = 0, [0] * counts.shape[1]
    for row in counts.tolist():
        longer = [max(pair) for pair in zip(longest, row, strict=True)]
        if size and (size + 1) * sum(longer) > limit:
            yield size
            size, longer = 0, row
        size, longest = size + 1, longer
    yield size


def _without_single_rows(sizes: Sequence[int]) -> list[int]:
    """A part of one row together with the next, or the one before if it is the last."""
    joined: list[int] = []
    for size in sizes:
        if joined and joined[-1] == 1:
            joined[-1] += size
        else:
            joined.append(size)
    if len(joined) > 1 and joined[-1] == 1:
        joined[-2:] = [joined[-2] + 1]
    return joined


def _at_least(sizes: list[int], count: int) -> list[int]:
    """Halve the largest sizes until there are ``count`` of them."""
    if sum(sizes) < count:
        raise MmclError(
            f"another process has {count} micro-batches, and this one {sum(sizes)} rows; raise training.micro_batch"
        )
    sizes = list(sizes)
    while len(sizes) < count:
        number = sizes.index(max(sizes))
        sizes[number : number + 1] = [sizes[number] - sizes[number] // 2, sizes[number] // 2]
    return sizes

"""A batch cut into parts that fit into memory, one after the other; see ``gradient_cache`` for what becomes of them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmcl.config.training import TokenLimit
from mmcl.data.batches.batch import Batch, Inputs
from mmcl.data.batches.inputs import token_counts
from mmcl.data.batches.views import draw_numbers
from mmcl.methods import Method
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.optimization.batch_norm import learning_layers

NO_TOKENS = "training.micro_batch counts tokens, but no text passes a tower here; give it a number of rows"


def micro_batches(batch: Batch, limit: int | TokenLimit | Literal["auto"] | None, method: nn.Module) -> list[Batch]:
    """``batch`` in parts of consecutive rows, each within ``limit``, see ``training.micro_batch``; but a row that would
    be alone joins its neighbours where there is batch normalisation: a single row has no statistics.

    Where the towers themselves speak with other processes, all processes get the same number of parts.

    Raises:
        MmclError: the limit is of tokens, and there are none; or this process has too few rows for as many parts as
            another one has.
    """
    rows = len(batch.ids)
    least = 2 if learning_layers(method) else 1
    if limit is None or rows <= 1:
        sizes = [rows]
    elif limit == "auto":
        raise ValueError("the size of a micro-batch has to be found first")
    elif isinstance(limit, int):
        sizes = _evenly(rows, -(-rows // limit))
    else:
        sizes = list(_filled(_passes(batch, method), limit.tokens))
    if least > 1:
        sizes = _without_single_rows(sizes)
    if limit is not None and distributed.world_size() > 1 and any(map(_communicates, method.modules())):
        device = next(method.parameters()).device
        sizes = _at_least(sizes, int(distributed.all_reduce_max(len(sizes), device)), least)
    return [batch] if len(sizes) == 1 else batch.split(sizes)


def _communicates(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule | nn.SyncBatchNorm)


def _passes(batch: Batch, method: nn.Module) -> list[Tensor]:
    """For each pass through the text tower (N, T): tokens of the T texts that each row brings to it, which are those of
    its roles, one that is drawn twice but was not changed at random twice over, and its share of the extra texts, of
    which each counts as the longest."""
    rows, separate = len(batch.ids), method.separate if isinstance(method, Method) else ()
    passing = [(name, inputs) for name, inputs in _texts(batch, method) if "input_ids" in inputs]
    alone = [token_counts(inputs)[:, None] for name, inputs in passing if name in separate]
    together = [token_counts(inputs) for name, inputs in passing if name not in separate]
    for inputs in batch.extra.values():
        if "input_ids" in inputs and (count := len(inputs["input_ids"])):
            together += [token_counts(inputs).max().expand(rows)] * -(-count // rows)
    if not alone and not together:
        raise MmclError(NO_TOKENS)
    return [*alone, torch.stack(together, dim=1)] if together else alone


def _texts(batch: Batch, method: nn.Module) -> Iterator[tuple[str, Inputs]]:
    """The inputs of each view as they are before what changes them on the device, which makes no text longer."""
    if not isinstance(method, Method):
        yield from batch.inputs.items()
        return
    views = method.views()
    for name, numbers in draw_numbers(views).items():
        if views[name].draw_of is None:  # texts with hidden tokens pass by themselves
            yield from ((name, batch.drawn(views[name].column, number)) for number in numbers)


def _evenly(rows: int, count: int) -> list[int]:
    return [rows * (number + 1) // count - rows * number // count for number in range(count)]


def _filled(passes: Sequence[Tensor], limit: int) -> Iterator[int]:
    """Sizes of consecutive parts that bring at most ``limit`` tokens, the padding of each pass included; or a single
    row."""
    texts = [counts.shape[1] for counts in passes]
    size, longest = 0, [0] * len(texts)
    for row in torch.stack([counts.amax(dim=1) for counts in passes], dim=1).tolist():
        longer = [max(pair) for pair in zip(longest, row, strict=True)]
        if size and (size + 1) * sum(map(operator.mul, texts, longer)) > limit:
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


def _at_least(sizes: list[int], count: int, least: int) -> list[int]:
    """Halve the largest sizes until there are ``count`` of them, none below ``least``."""
    rows, sizes = sum(sizes), list(sizes)
    if len(sizes) < count and rows < count * least:
        needed = f", of which each needs {least} for batch normalisation" if least > 1 else ""
        raise MmclError(
            f"another process has {count} micro-batches{needed}, and this one {rows} rows; raise training.micro_batch"
        )
    while len(sizes) < count:
        number = sizes.index(max(sizes))
        if sizes[number] < 2 * least:  # 3 and 3 rows are 2, 2 and 2 as well
            return _evenly(rows, count)
        sizes[number : number + 1] = [sizes[number] - sizes[number] // 2, sizes[number] // 2]
    return sizes

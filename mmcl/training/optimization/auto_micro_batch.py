"""``training.micro_batch: auto``: the largest micro-batch that fits into the memory of the device."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmcl.data.batches.batch import Batch
from mmcl.data.batches.feed import Feed
from mmcl.methods import Method
from mmcl.methods.parts.queue import MemoryQueue
from mmcl.models.text.limits import UNLIMITED
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.optimization.average import live_tensors
from mmcl.training.optimization.gradient_cache import RandomState
from mmcl.training.optimization.step import TrainStep

SMALLEST = 8  # rows of the first trial
MULTIPLE = 8  # of rows, which tensor cores like
SHARE = 0.85  # of the memory that may be used: fragments need some
SMALLER = "take a smaller model or image, set checkpointing on the towers, or training.parallel: fsdp"
log = logging.getLogger("mmcl")


def find_micro_batch(
    step: TrainStep,
    feed: Feed,
    run: Callable[[Batch], object],
    full_load: Sequence[AbstractContextManager[None]] = (),
) -> int | None:
    """The largest micro-batch with which a step fits into memory; None if all rows of a process at once do.

    Steps are tried with ever larger micro-batches, two of them each. The next size is tried only where the growth so
    far says that it will fit, so that a trial never ends in a full machine; the last is found by interpolation and
    tried with all rows. Afterwards weights, optimizer and random numbers are as before.

    Args:
        step: whose settings get the micro-batch of each trial.
        feed: of the training data.
        run: makes a step of a batch, at a learning rate of 0. All processes call this together.
        full_load: contexts in which batches carry as much as they ever will.

    Raises:
        MmclError: not even the smallest micro-batch fits, or the memory cannot be measured here.
    """
    with _restored(step), ExitStack() as stack:
        for each in full_load:
            stack.enter_context(each)
        for queue in step.method.modules():
            if isinstance(queue, MemoryQueue):
                queue.fill()
        batch = longest_batch(feed, step.method)
        rows, memory = len(batch.ids), _memory(step.device)
        smallest = min(SMALLEST, rows)
        peak = _Peak(step, batch, run, memory)
        peak(smallest)  # the optimizer's state is made in the first step
        budget = -distributed.all_reduce_max(-memory.total() * SHARE, step.device)
        found = largest_that_fits(peak, budget, smallest, rows)
        while found is not None and found > smallest and 2 * found < rows and peak(found, rows) > budget:
            found = max(smallest, found // 2 // MULTIPLE * MULTIPLE)
        total = memory.total()
    if found is None:
        raise MmclError(
            f"training.micro_batch: auto: not even {smallest} rows fit into {budget / 2**30:.1f} GiB; {SMALLER}"
        )
    if found > rows - MULTIPLE:
        found = rows
    if distributed.rank() == 0:
        log.info(
            "training.micro_batch: %s fit into %.1f of %.1f GiB",
            f"{found} rows of {rows}" if found < rows else f"all {rows} rows of a process",
            budget / 2**30,
            total / 2**30,
        )
    return found if found < rows else None


class _Peak:
    """Bytes at the fullest moment of a step, by the size of its micro-batches; the most of any process."""

    def __init__(self, step: TrainStep, batch: Batch, run: Callable[[Batch], object], memory: Memory) -> None:
        self.step, self.batch, self.run, self.memory = step, batch, run, memory
        self.fitted: list[int] = []

    def __call__(self, size: int, tried: int | None = None) -> float:
        """Of a step of ``tried`` rows; of two micro-batches if absent."""
        rows, world, step = len(self.batch.ids), distributed.world_size(), self.step
        tried = min(rows, tried or 2 * size)
        step.settings = step.settings.model_copy(update={"micro_batch": size if size < tried else None})
        self.memory.reset()
        try:
            self.run(self.batch if tried == rows else self.batch.split([tried, rows - tried])[0])
        except torch.OutOfMemoryError:
            if world > 1:  # the others wait for this process in a collective call, and there is no way back to them
                cure = f"{max(self.fitted)} did not: set it yourself" if self.fitted else SMALLER
                raise MmclError(
                    f"training.micro_batch: auto: {size} rows in each of {world} processes exceed the memory of one of "
                    f"them; {cure}"
                ) from None
            step.optimizer.zero_grad(set_to_none=True)
            return math.inf
        self.fitted.append(size)
        return distributed.all_reduce_max(self.memory.peak(), step.device)


@contextmanager
def _restored(step: TrainStep) -> Iterator[None]:
    """Within, steps may be made; afterwards weights and all other state, settings and random numbers are as before."""
    method, average, random, settings = step.method, step.average, RandomState(step.device), step.settings
    live = live_tensors(method, set(method.state_dict()))
    kept = {name: _copy(tensor) for name, tensor in live.items()}
    averaged = {name: _copy(tensor) for name, tensor in average.values.items()} if average else {}
    scaler = step.scaler.state_dict()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(kept[name])
        if average is not None:
            average.load(averaged)
        step.optimizer.state.clear()
        step.optimizer.zero_grad(set_to_none=True)
        step.scaler.load_state_dict(scaler)
        step.settings = settings
        random.restore()


def _copy(tensor: Tensor) -> Tensor:
    """In the host's memory, which is not what is short; of shards, where they are."""
    return tensor.detach().clone() if isinstance(tensor, DTensor) else tensor.detach().to("cpu", copy=True)


def longest_batch(feed: Feed, method: Method) -> Batch:
    """This process's share of the first batch, in which texts are as long as they will ever be."""
    batches = feed.batches(0, 1)
    try:
        batch = next(batches)
    finally:
        batches.close()
    # A model without a limit keeps the texts of the batch that was drawn.
    if longest := {role: most for role, most in feed.longest_texts.items() if most < UNLIMITED}:
        named = [*batch.inputs.items(), *batch.extra.items()]
        named += [(column, inputs) for column, draws in batch.draws.items() for inputs in draws]
        for role, inputs in named:
            if "input_ids" in inputs:
                column = role if role in longest else next(iter(longest))
                padding = method.encoder.text(method.reading.tower(column)).processor.padding_id
                pad_texts(inputs, longest.get(role, max(longest.values())), padding)
    return batch


def pad_texts(inputs: dict[str, Tensor], length: int, padding: int) -> None:
    """Pad the texts of a role, in place, as they are in a batch that has one of so many tokens."""
    ids = inputs["input_ids"]
    missing = max(0, length - ids.shape[1])
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    inputs |= {"input_ids": F.pad(ids, (0, missing), value=padding), "attention_mask": F.pad(mask, (0, missing))}


def largest_that_fits(peak: Callable[[int], float], budget: float, smallest: int, longest: int) -> int | None:
    """The largest number of rows whose ``peak`` stays within ``budget``, a multiple of ``MULTIPLE``; None if none does.

    ``peak`` is asked for ``smallest`` and then for the doubles of it, as long as the growth says that the next one
    will fit. Memory may grow a little faster than the rows, so that the growth to the next double is taken as 2.5 times
    the growth to the last.
    """
    rows, used = smallest, peak(smallest)
    if used > budget:
        return None
    growth = 0.0
    while 2 * rows <= longest and used + 2.5 * growth <= budget:
        more = peak(2 * rows)
        if more > budget:
            break
        growth, used, rows = more - used, more, 2 * rows
    # From here to the next double along a straight line, of the steeper slope that was allowed for above.
    share = (budget - used) / (2.5 * growth) if growth > 0 else 1.0
    found = min(int(rows * (1 + min(1.0, share))), longest) // MULTIPLE * MULTIPLE
    while found > rows and peak(found) > budget:
        found = (found + rows) // 2 // MULTIPLE * MULTIPLE
    return max(found, rows)


class Memory:
    """Of a GPU: what torch has allocated there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        torch.cuda.synchronize(self.device)
        return float(torch.cuda.max_memory_reserved(self.device))

    def total(self) -> float:
        free, _ = torch.cuda.mem_get_info(self.device)
        return float(free + torch.cuda.memory_reserved(self.device))


class HostMemory(Memory):
    """Of the machine: what this process holds, as Linux counts it."""

    def reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now

    def peak(self) -> float:
        return _kibibytes("/proc/self/status", "VmHWM")

    def total(self) -> float:
        """What is free, with what this process holds; the processes of a group share it."""
        free = _kibibytes("/proc/meminfo", "MemAvailable")
        return free / distributed.world_size() + _kibibytes("/proc/self/status", "VmRSS")


def _kibibytes(path: str, name: str) -> float:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) * 1024
    raise MmclError(f"{path} has no {name}, so the memory cannot be measured; give training.micro_batch a number")


def _memory(device: torch.device) -> Memory:
    if device.type == "cuda":
        return Memory(device)
    if device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        raise MmclError(
            f"training.micro_batch: auto measures memory on CUDA and on Linux only, not on {device.type} here; give it "
            "a number"
        )
    return HostMemory(device)

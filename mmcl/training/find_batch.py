"""The largest batch that fits into the memory of the device."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.config.schema import Config
from mmcl.data.batches.batch import MINED, Batch
from mmcl.methods.parts.queue import MemoryQueue
from mmcl.models.text.limits import UNLIMITED
from mmcl.models.text.tower import TextTower
from mmcl.runtime import distributed
from mmcl.runtime.errors import DivergedError, MmclError, NotFiniteError
from mmcl.training.loop import Trainer
from mmcl.training.run import Run
from mmcl.training.run_folder import has_begun

SMALLEST = 16  # rows a process, of the first trial
MULTIPLE = 8  # of rows a process, which tensor cores like
SHARE = 0.85  # of the memory that may be used: fragments need some
SMALLER = "take a smaller model or picture, set checkpointing on the towers, or training.parallel: fsdp"
log = logging.getLogger("mmcl")


def fitting(config: Config, folder: Path, resume: bool) -> Config:
    """``config`` with the largest batch that fits; with the one that the run found, if it is resumed."""
    # A search that was cut off leaves a config.yaml, too, with the batch of its trials.
    batch = Run(folder).config.training.batch_size if resume and has_begun(folder) else find_batch(config, folder)
    return config.model_copy(update={"training": config.training.model_copy(update={"batch_size": batch})})


def find_batch(config: Config, folder: Path) -> int:
    """The largest global batch whose steps fit into memory, with the models, the optimizer and the losses of the run.

    Whole steps are tried with ever more rows. The next size is tried only where the growth so far says that it will
    fit, so that a trial never ends in a full machine; the last is found by interpolation.

    Args:
        config: of the run, whose ``training.batch_size`` does not matter.
        folder: of the run, which begins afterwards.

    Raises:
        MmclError: not even the smallest batch fits, the memory cannot be measured here, or micro-batches bound it.
    """
    if config.training.micro_batch is not None:
        raise MmclError(
            "--find-batch looks for the batch whose activations fit into memory, which training.micro_batch makes fit "
            "whatever the batch; leave one of the two out"
        )
    world = distributed.world_size()
    trainer, batch = _ready(config, folder, SMALLEST * world)
    memory = _memory(trainer.device)
    longest = trainer.feed.samples // world
    fitted: list[int] = []

    def peak(rows: int) -> float:
        """Bytes at the fullest moment of a step with so many rows in each process; the most of any process."""
        memory.reset()
        try:
            trainer.step([grown(batch, rows)], len(fitted), 0.0)
        except NotFiniteError as error:
            raise DivergedError(
                f"--find-batch: {error} before anything was learned; the model that the config starts from gives such "
                "numbers, in this training.precision at least"
            ) from None
        except torch.OutOfMemoryError:
            if world > 1:  # the others wait for this process in a collective call, and there is no way back to them
                cure = f"{max(fitted)} did not: set training.batch_size yourself" if fitted else SMALLER
                raise MmclError(
                    f"--find-batch: {rows} rows in each of {world} processes exceed the memory of one of them; {cure}"
                ) from None
            trainer.method.forget_step()
            trainer.step.optimizer.zero_grad(set_to_none=True)
            return math.inf
        fitted.append(rows)
        return distributed.largest(memory.peak(), trainer.device)

    peak(SMALLEST)  # the optimizer's state is made in the first step
    budget = -distributed.largest(-memory.total() * SHARE, trainer.device)
    rows = largest_that_fits(peak, budget, SMALLEST, longest)
    if rows is None:
        raise MmclError(f"not even {SMALLEST} rows a process fit into {budget / 2**30:.1f} GiB; {SMALLER}")
    if distributed.rank() == 0:
        shared = f" ({rows} in each of {world} processes)" if world > 1 else ""
        log.info(
            "a batch of %d%s fits into %.1f of %.1f GiB; an epoch is %.4g steps of it, and training.lr stays %g",
            rows * world,
            shared,
            budget / 2**30,
            memory.total() / 2**30,
            trainer.feed.samples / (rows * world),
            config.training.lr,
        )
    return rows * world


def _ready(config: Config, folder: Path, size: int) -> tuple[Trainer, Batch]:
    """The run's trainer, with all that fills memory later on, and this process's share of a first batch, in which texts
    are as long as they will ever be."""
    training = config.training.model_copy(update={"batch_size": size})
    trainer = Trainer(config.model_copy(update={"training": training}), folder, resume=False, show_progress=False)
    trainer.method.train()
    if trainer.miner is not None:
        trainer.miner.any_negatives()
    for queue in trainer.method.modules():
        if isinstance(queue, MemoryQueue):
            queue.fill()
    batches = trainer.feed.batches(0, 1)
    try:
        batch = next(batches)
    finally:
        batches.close()
        trainer.metrics.close()
    # A model without a limit keeps the texts of the batch that was drawn.
    if longest := {role: most for role, most in trainer.feed.longest_texts.items() if most < UNLIMITED}:
        padding = cast(TextTower, trainer.method.encoder.embedder("text").tower).padding_id
        for named in (batch.inputs, batch.extra):
            for role, inputs in named.items():
                if "input_ids" in inputs:
                    pad_texts(inputs, longest.get(role, max(longest.values())), padding)
    return trainer, batch


def pad_texts(inputs: dict[str, Tensor], length: int, padding: int) -> None:
    """Pad the texts of a role, in place, as they are in a batch that has one of so many tokens."""
    ids = inputs["input_ids"]
    missing = max(0, length - ids.shape[1])
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    inputs |= {"input_ids": F.pad(ids, (0, missing), value=padding), "attention_mask": F.pad(mask, (0, missing))}


def largest_that_fits(peak: Callable[[int], float], budget: float, smallest: int, longest: int) -> int | None:
    """The largest number of rows whose ``peak`` stays within ``budget``, a multiple of ``MULTIPLE``; None if none does.

    ``peak`` is asked for ``smallest`` and then for the doubles of it, as long as the growth foretells that the next
    one fits. Memory grows a little faster than the rows (similarities grow with their square), so that the growth to
    the next double is taken as 2.5 times the growth to the last.
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
    room = (budget - used) / (2.5 * growth) if growth > 0 else 1.0
    found = min(int(rows * (1 + min(1.0, room))), longest) // MULTIPLE * MULTIPLE
    while found > rows and peak(found) > budget:
        found = (found + rows) // 2 // MULTIPLE * MULTIPLE
    return max(found, rows)


def grown(batch: Batch, rows: int) -> Batch:
    """``batch`` repeated to ``rows`` rows, of which every one is another thing."""

    def repeat(tensor: Tensor, count: int = rows) -> Tensor:
        times = -(-count // len(tensor))
        return tensor.repeat(times, *[1] * (tensor.ndim - 1))[:count]

    inputs = {role: {name: repeat(tensor) for name, tensor in named.items()} for role, named in batch.inputs.items()}
    ids = torch.arange(rows)[:, None].expand(rows, batch.ids.shape[1]) + distributed.rank() * rows
    extra, extra_ids = dict(batch.extra), dict(batch.extra_ids)
    for role in (MINED, f"guide_{MINED}"):  # these grow with the rows
        if role in extra:
            count = rows * len(extra_ids[role]) // len(batch.ids)
            extra[role] = {name: repeat(tensor, count) for name, tensor in extra[role].items()}
            extra_ids[role] = repeat(extra_ids[role], count)
    return Batch(inputs, ids.contiguous(), repeat(batch.seeds), repeat(batch.rows), extra, extra_ids)


class _Memory:
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


class _HostMemory(_Memory):
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
    raise MmclError(f"{path} tells no {name}, so the memory cannot be measured; set training.batch_size yourself")


def _memory(device: torch.device) -> _Memory:
    if device.type == "cuda":
        return _Memory(device)
    if device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        raise MmclError(
            f"--find-batch measures memory on CUDA and on Linux only, not on {device.type} here; set "
            "training.batch_size yourself"
        )
    return _HostMemory(device)

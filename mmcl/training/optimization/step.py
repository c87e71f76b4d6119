"""One optimizer step: embeddings, global views, loss, gradient, update."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mmcl.config.training import TrainingConfig
from mmcl.data.batches.batch import Batch
from mmcl.methods import Loss, Method, Outputs, Step
from mmcl.methods.parts.momentum import MomentumCopy
from mmcl.methods.parts.queue import MemoryQueue
from mmcl.models.blocks import blocks
from mmcl.models.embedder import Embedder, embedders
from mmcl.models.text.embedder import TextEmbedder
from mmcl.runtime import distributed, sharding
from mmcl.runtime.device import DTYPES
from mmcl.runtime.errors import MmclError, NotFiniteError
from mmcl.runtime.products import batched_attention, fast_products
from mmcl.training.optimization.average import WeightAverage
from mmcl.training.optimization.check_method import check_embeddings, check_loss, missing_views_named
from mmcl.training.optimization.gradient_cache import backward
from mmcl.training.optimization.micro_batch import micro_batches
from mmcl.training.optimization.optim import without_gradient
from mmcl.training.optimization.readout import Readout

log = logging.getLogger("mmcl")


@dataclass
class StepResult:
    """What a step reports to the log.

    Attributes:
        numbers: ``loss``, the mean over the batches; its parts, where a method has several; what the probe measures.
        gradient: ``norm`` of the gradient, before it was clipped.
        outputs: what the loss got of the last batch, without gradient.
    """

    numbers: Readout
    gradient: Readout
    outputs: Outputs

    @property
    def loss(self) -> float:
        """The mean over the batches."""
        return self.numbers.values()["loss"]

    @property
    def norm(self) -> float:
        """Of the gradient, before it was clipped."""
        return self.gradient.values()["norm"]

    @property
    def parts(self) -> dict[str, float]:
        """As ``loss``, of what it is made of."""
        return {name: value for name, value in self.numbers.values().items() if name != "loss"}


class TrainStep:
    """A method on its device, wrapped for the processes there are, and the optimizer of its parameters.

    Args:
        method: on ``device``.
        optimizer: of its parameters; made after ``parallel_method``, which may put shards in their place.
        precision: ``float32``, ``bfloat16`` or ``float16`` of the towers; losses are in float32 or more.
        average: a running average of the weights to keep up, if any.
    """

    def __init__(
        self,
        method: Method,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainingConfig,
        device: torch.device,
        precision: str,
        average: WeightAverage | None,
    ) -> None:
        self.method, self.wrapped, self.optimizer = method, wrapped, optimizer
        self.settings, self.device, self.precision, self.average = settings, device, precision, average
        self._embedded: list[Outputs] = []  # of the batches of a step, for the probe
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self._waits = device.type != "cuda"  # a CPU has computed what it is asked for
        self._unchecked: tuple[Readout, Readout, Batch] | None = None

    def __call__(self, batches: Sequence[Batch], step: Step, rate: float) -> StepResult:
        """An optimizer step at learning rate ``rate``, over the mean loss of these batches.

        Raises:
            NotFiniteError: the loss or the gradient stopped being finite. A GPU is not waited for: there it is of the
                step before, by whose gradient the weights have then changed.
        """
        end = self.settings.weight_decay_end
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
            if group.get("scheduled_decay") and end is not None:
                group["weight_decay"] = step.cosine(self.settings.weight_decay, end)
        self._embedded = []
        losses, outputs = list[Loss](), list[Outputs]()
        for number, batch in enumerate(batches, start=1):
            loss, of_batch = self._forward_backward(batch, step, number, len(batches))
            losses.append(loss)
            outputs.append(of_batch)
        if step.number == 0 and (idle := without_gradient(self.method)):
            self._report_idle(idle)
        norm = self._update(batches[-1], step)
        self.method.after_update(Outputs.of_batches(outputs), step)
        numbers = means(losses)
        if self.method.probe is not None:
            numbers |= self.method.probe.update(Outputs.of_batches(self._embedded))
        if self.average is not None:
            self.average.update(step.number + 1)
        result = StepResult(Readout(numbers), Readout({"norm": norm}), outputs[-1])
        if not self._waits:
            self.require_finite()
            self._unchecked = result.numbers, result.gradient, batches[-1]
        return result

    def require_finite(self) -> None:
        """Look at the last step of a GPU, which no later one has looked at.

        Raises:
            NotFiniteError: its loss or its gradient is not finite.
        """
        if self._unchecked is None:
            return
        numbers, gradient, batch = self._unchecked
        self._unchecked = None
        if not math.isfinite(loss := numbers.values()["loss"]):
            raise NotFiniteError(f"the loss became {loss}", "loss", batch)
        if not math.isfinite(norm := gradient.values()["norm"]) and not self.scaler.is_enabled():
            raise NotFiniteError(f"the gradient became {norm}", "gradient", batch)

    def _forward_backward(self, batch: Batch, step: Step, number: int, count: int) -> tuple[Loss, Outputs]:
        """Add the share of batch ``number`` of ``count`` in the gradient; returns its loss and what the loss got."""
        results: list[tuple[Loss, Outputs]] = []

        def embed(part: Batch) -> dict[str, Tensor]:
            with self._forward_pass(part):
                embeddings: dict[str, Tensor] = self.wrapped(self.method.view_inputs(part.to(self.device)))
            return embeddings

        def outputs_of(part: Batch) -> Outputs:
            with self._forward_pass(part):
                outputs = self.method.outputs(part.to(self.device), self.wrapped)
            check_embeddings(self.method, outputs)
            return outputs

        def objective(outputs: Outputs) -> Tensor:
            with missing_views_named(self.method, outputs):
                gathered = outputs if self.method.across else outputs.gathered()
                if self.method.probe is not None:
                    self._embedded.append(outputs.detached().gathered() if self.method.across else gathered.detached())
                outputs = self.method.project(gathered)
                loss = self.method.loss(outputs, step)
            check_loss(self.method, loss)
            if self._waits and not torch.isfinite(loss.value):
                raise NotFiniteError(f"the loss became {loss.value.item()}", "loss", batch)
            parts = {name: part.detach() for name, part in loss.parts.items()}
            results.append((Loss(loss.value.detach(), parts), outputs.detached()))
            return self.scaler.scale(loss.value / count)

        parts = micro_batches(batch, self.settings.micro_batch, self.method)
        with fast_products():
            backward(
                self.method,
                parts,
                outputs_of,
                embed,
                objective,
                lambda joined: self._no_sync(not joined or number < count),
                self.device,
            )
        return results[0]

    @contextmanager
    def _forward_pass(self, part: Batch) -> Iterator[None]:
        """The context of the forward pass of ``part`` through the towers."""
        dtype, enabled = DTYPES[self.precision], self.precision != "float32"
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=enabled)
        with autocast, batched_attention(self.device, part.longest_sequence):
            yield

    def _report_idle(self, idle: list[str]) -> None:
        what = f"{len(idle)} parameters are to learn, but got no gradient, such as {idle[0]}"
        if isinstance(self.wrapped, DistributedDataParallel):  # it would wait for their gradients
            cure = f"keep them as they are: training.groups: [{{match: '{re.escape(idle[0])}', lr: 0}}]"
            raise MmclError(f"{what}, which several processes cannot have; {cure}")
        log.warning(what)

    def _update(self, batch: Batch, step: Step) -> Tensor:
        """Clip, step and clear the gradient; returns its norm before."""
        self.scaler.unscale_(self.optimizer)
        self.method.before_update(step)
        norm = clip_gradients(self.method, self.settings.clip_grad or math.inf)
        # A scaler skips such a step by itself.
        if self._waits and not norm.isfinite() and not self.scaler.is_enabled():
            raise NotFiniteError(f"the gradient became {norm.item()}", "gradient", batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @contextmanager
    def _no_sync(self, local: bool) -> Iterator[None]:
        """Between the passes of a step gradients add up in each process, and meet the others' at the last one only."""
        if not local:
            yield
        elif isinstance(self.wrapped, DistributedDataParallel):
            with self.wrapped.no_sync():
                yield
        else:
            sharding.delay_gradients(self.method, True)
            try:
                yield
            finally:
                sharding.delay_gradients(self.method, False)


@torch.no_grad()
def means(losses: Sequence[Loss]) -> dict[str, Tensor]:
    """``loss``, the mean value of ``losses``, and the mean of each of their parts."""
    named = [{"loss": loss.value, **loss.parts} for loss in losses]
    return {name: torch.stack([each[name] for each in named]).mean() for name in named[0]}


@torch.no_grad()
def clip_gradients(module: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their norm together is at most ``limit``; returns it as it was before.

    Beside the shards of a tower there are parameters that every process holds in full, such as a head for training.
    Their gradients are averaged here, since nobody else does it, and their norm is computed separately: no call takes
    both kinds.
    """
    learned = [parameter for parameter in module.parameters() if parameter.grad is not None]
    shards = [parameter for parameter in learned if isinstance(parameter, DTensor)]
    plain = [parameter for parameter in learned if not isinstance(parameter, DTensor)]
    if shards:
        distributed.all_reduce_mean(_gradients(plain))
    kinds = [kind for kind in (plain, shards) if kind]
    norms = [sharding.full_tensor(nn.utils.get_total_norm(_gradients(kind))) for kind in kinds]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return norm


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def parallel_method(method: Method, settings: TrainingConfig, device: torch.device) -> nn.Module:
    """``method`` as ``training.parallel`` says, if there are several processes; called before the optimizer is made.

    ``ddp``: every process holds all parameters and gradients are averaged (Li et al. 2020, arXiv:2006.15704).
    ``fsdp``: towers are sharded block by block. What is outside the towers (a temperature, a head for training) is
    whole everywhere; see :func:`clip_gradients`.
    """
    for embedder in embedders(method).values():
        if settings.compile:
            # Texts of every length through one graph; images have one size.
            embedder.tower.compile(dynamic=embedder.modality == "text" or None)
    if distributed.world_size() == 1:
        return method
    if settings.parallel == "fsdp":
        parts = embedders(method).values()
        learning = [part for part in parts if any(weight.requires_grad for weight in part.parameters())]
        for copy in [part for part in method.modules() if isinstance(part, MomentumCopy)]:  # in its model's shards
            learning += [
                follower
                for part, follower in copy.module_pairs()
                if isinstance(follower, Embedder) and part in learning
            ]
        for embedder in learning:
            sharding.shard(embedder, blocks(embedder.tower.net), device)
            embedder.in_groups = False
            if isinstance(embedder, TextEmbedder) and embedder.tower.padding.mixes:
                name = type(embedder.tower.net).__name__
                log.warning("a %s mixes padding in; under fsdp texts of different lengths are padded in training", name)
        if learning:
            return method
    queues = [(path, part) for path, part in method.named_modules() if isinstance(part, MemoryQueue)]
    same = [f"{path}.{name}" for path, queue in queues for name in queue.state_dict()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, same)  # else sent around in every step
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(method, device_ids=devices)

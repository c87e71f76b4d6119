"""Checkpoints: written beside and renamed, checked when read, and holding no pickle."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.formats.weights import save_tensors, tied_names
from mmcl.methods.parts.state import beside_weights
from mmcl.models.embedder import Embedder
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import remove_folder, replace_folder, sha256_file
from mmcl.runtime.sharding import full_tensor, sharded_like
from mmcl.training.optimization.average import WeightAverage

FORMAT_VERSION = 2
_NAME = re.compile(r"step-\d{8}")
log = logging.getLogger("mmcl")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        seconds: time spent training so far.
        best: the best value of the named metric, or None before the first.
        best_step: the step that had it.
        data: identifies the training rows: a run cannot go on with others.
        precision: of the towers, from versions whose ``config.yaml`` did not say what ``auto`` was; else empty.
        window: the losses, and their parts, of the steps since the last line of metrics.
        scaler: state of float16's gradient scaler.
        position: where this process's stream of samples stands, for a source that is a stream.
        judged: whether the evaluation that is due at this step, if one is, has been made.
    """

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    data: str = ""
    precision: Annotated[str, Field(pattern="^(float32|bfloat16|float16|)$")] = ""
    window: list[dict[str, float]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    position: Any = None
    judged: bool = True


_FORMER = {
    "training_head.": "heads.projector.",
    "momentum.parts.training_head.": "momentum.parts.projector.",
    "predictor.": "heads.predictor.",
    "prototypes.": "heads.prototypes.",
}  # what heads were called in the state of a method
_PROGRESS = TypeAdapter(Progress)
_CHECKSUMS = TypeAdapter(dict[str, str])
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def save_checkpoint(
    folder: Path,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    keep: int,
    average: WeightAverage | None = None,
) -> Path:
    """Write ``checkpoints/step-…`` of a run; called by all processes together.

    The newest ``keep`` stay, and the best besides. A crash while writing leaves no half-written checkpoint behind,
    since the folder gets its name last.
    """
    target = checkpoint_path(folder, progress.step)
    beside = target.with_name(f".{target.name}.part")
    changed = changed_names(method)
    files = {"model": {name: tensor for name, tensor in method.state_dict().items() if name in changed}}
    if average is not None:
        files["average"] = average.values
    files["optimizer"] = _optimizer_tensors(optimizer, method)
    try:
        if distributed.rank() == 0:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        for name, tensors in files.items():
            gathered = {key: full_tensor(tensor) for key, tensor in tensors.items()}
            if distributed.rank() == 0:
                save_tensors(beside / f"{name}.safetensors", gathered)
            distributed.barrier()
        save_tensors(beside / f"random-{distributed.rank()}.safetensors", _random_state())
        position = json.dumps(progress.position) + "\n"
        (beside / f"position-{distributed.rank()}.json").write_text(position, encoding="utf-8")
        distributed.barrier()
        if distributed.rank() == 0:
            checksums = {file.name: sha256_file(file) for file in sorted(beside.iterdir())}
            state = {"format_version": FORMAT_VERSION, **asdict(progress), "sha256": checksums}
            del state["position"]  # every process has its own
            (beside / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            replace_folder(beside, target)  # one of the same step, of a run that was not resumed from it
            _prune(folder, keep, progress.best_step)
    finally:
        if distributed.rank() == 0:
            shutil.rmtree(beside, ignore_errors=True)
    distributed.barrier()
    return target


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of ``step``."""
    return folder / "checkpoints" / _name(step)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in (folder / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name))


def load_checkpoint(
    checkpoint: Path,
    method: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    average: WeightAverage | None = None,
) -> Progress:
    """Restore weights, their average, optimizer, random state; returns where the run stood.

    Without ``optimizer`` only the weights are restored.

    Raises:
        MmclError: a file is missing or not the one written, or the model is another.
    """
    progress, checksums = _verified_state(checkpoint)
    live = method.state_dict()
    weights = {
        name: sharded_like(tensor, live[name]) if name in live else tensor
        for name, tensor in current_names(load_file(checkpoint / "model.safetensors"), live).items()
    }
    missing, unexpected = method.load_state_dict(weights, strict=False)
    wrong = [*unexpected, *(changed_names(method) & set(missing))]
    if wrong:
        raise MmclError(f"{checkpoint}: holds another model than the config describes (first difference: {wrong[0]})")
    if average is not None:
        average.load(current_names(load_file(checkpoint / "average.safetensors"), live))
    if optimizer is not None:
        moments = current_names(load_file(checkpoint / "optimizer.safetensors"), live)
        _restore_optimizer(optimizer, method, moments, checkpoint)
        random = checkpoint / f"random-{distributed.rank()}.safetensors"
        if random.name in checksums:
            _restore_random_state(load_file(random))
        else:
            log.warning("%s was written by fewer processes: dropout will differ from the run it continues", checkpoint)
    position = checkpoint / f"position-{distributed.rank()}.json"
    if position.name in checksums:
        progress.position = json.loads(position.read_text(encoding="utf-8"))
    return progress


def current_names(tensors: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` of the state of a method, or of its optimizer, by the names that these have now.

    Args:
        tensors: as read.
        live: the state of the method.
    """

    def name_now(name: str) -> str:
        for former, now in _FORMER.items():
            renamed = now + name.removeprefix(former)
            if name.startswith(former) and renamed.partition(":")[0] in live:
                return renamed
        return name

    return {name_now(name): tensor for name, tensor in tensors.items()}


def recorded_precision(checkpoint: Path) -> str:
    """What the towers were computed in when a checkpoint was written, if ``config.yaml`` does not say so; else empty.

    Raises:
        MmclError: its ``state.json`` is damaged, or of another version.
    """
    return _read_state(checkpoint)[0].precision


def _cure(checkpoint: Path) -> str:
    return f"remove {checkpoint} to resume from the one before"


def _read_state(checkpoint: Path) -> tuple[Progress, dict[str, str]]:
    """``state.json`` of a checkpoint: where the run stood, and the checksums of the other files."""
    cure = _cure(checkpoint)
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        version = int(state.pop("format_version"))
    except _DAMAGED as error:
        raise MmclError(f"{checkpoint}/state.json: damaged checkpoint ({type(error).__name__}); {cure}") from None
    if version != FORMAT_VERSION:
        age, what = ("a newer", "upgrade mmcl") if version > FORMAT_VERSION else ("an older", "install that version")
        raise MmclError(f"{checkpoint}: written by {age} mmcl (format {version}); {what} to resume from it")
    try:
        checksums = _CHECKSUMS.validate_python(state.pop("sha256"))
        progress = _PROGRESS.validate_python(state)
        if checkpoint.name != _name(progress.step):
            raise ValueError("of another step")
    except _DAMAGED as error:
        raise MmclError(f"{checkpoint}/state.json: damaged checkpoint ({type(error).__name__}); {cure}") from None
    return progress, checksums


def _verified_state(checkpoint: Path) -> tuple[Progress, dict[str, str]]:
    """As :func:`_read_state`, of a checkpoint whose other files are those that were written."""
    progress, checksums = _read_state(checkpoint)
    cure = _cure(checkpoint)
    for name, checksum in checksums.items():
        path = checkpoint / name
        if not path.is_file():
            raise MmclError(f"{path}: missing from the checkpoint; {cure}")
        if sha256_file(path) != checksum:
            raise MmclError(f"{path}: damaged checkpoint, its checksum is not the one written; {cure}")
    return progress, checksums


def changed_names(method: nn.Module) -> set[str]:
    """Names of all state that training changes: the learned weights, and what a method keeps beside them."""
    beside = beside_weights(method).items()
    kept = {f"{prefix}{name}" for prefix, state in beside for name in state.checkpointed()}
    return learned_names(method) | (kept - tied_names(method).keys())


def learned_names(method: nn.Module) -> set[str]:
    """Names of the weights that training can change, with their statistics: all but the frozen parameters and towers,
    which the config or its seed gives again, and but what is no weight
    (:class:`~mmcl.methods.parts.state.MethodState`)."""
    names = set(method.state_dict()) - tied_names(method).keys()  # each weight once
    names -= {name for name, p in method.named_parameters() if not p.requires_grad}
    beside = tuple(beside_weights(method))
    names = {name for name in names if not name.startswith(beside)}
    for prefix, module in method.named_modules():
        if isinstance(module, Embedder):
            still = [(f"{prefix}.tower", module.tower)] if module.frozen else []
            held = {id(part) for part in module.in_eval}
            still += [(path, part) for path, part in module.named_modules(prefix=prefix) if id(part) in held]
            names -= {f"{path}.{name}" for path, part in still for name in part.state_dict() if not _learns(part, name)}
    return names


def _learns(module: nn.Module, name: str) -> bool:
    """Whether ``name``, of the state of a module kept in evaluation mode, is a parameter that learns nevertheless."""
    path, _, leaf = name.rpartition(".")
    parameter = module.get_submodule(path)._parameters.get(leaf)
    return parameter is not None and parameter.requires_grad


def _optimizer_tensors(optimizer: torch.optim.Optimizer, method: nn.Module) -> dict[str, Tensor]:
    """The state of the parameter ``name`` as ``name:exp_avg`` and so on; what is no tensor follows from the config."""
    return {
        f"{name}:{key}": value
        for name, parameter in method.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, method: nn.Module, tensors: dict[str, Tensor], checkpoint: Path
) -> None:
    numbers = {id(parameter): n for n, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    named: dict[str, list[str]] = {}
    for key in tensors:
        named.setdefault(key.rpartition(":")[0], []).append(key)
    state: dict[int, dict[str, Tensor]] = {}
    for name, parameter in method.named_parameters():
        keys = named.get(name, [])
        if keys and id(parameter) not in numbers:
            raise MmclError(f"{checkpoint}: its optimizer is not the config's (first difference: {name})")
        for key in keys:
            tensor = tensors[key]
            like = sharded_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
            if like.shape == parameter.shape:  # fused steps walk weights and moments side by side in memory
                like = torch.empty_like(parameter).copy_(like)
            state.setdefault(numbers[id(parameter)], {})[key.rpartition(":")[2]] = like
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _prune(folder: Path, keep: int, best_step: int | None) -> None:
    for checkpoint in list_checkpoints(folder)[:-keep]:
        if int(checkpoint.name.removeprefix("step-")) != best_step:
            remove_folder(checkpoint)

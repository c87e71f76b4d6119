"""Starting a run, and what it says where it ends before its time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmcl.config.load import load_config
from mmcl.config.schema import Config
from mmcl.runtime import distributed
from mmcl.runtime.errors import DivergedError, NotFiniteError
from mmcl.runtime.files import write_json
from mmcl.training.check_config import check_config
from mmcl.training.checkpoint import list_checkpoints
from mmcl.training.loop import Trainer
from mmcl.training.run import Run
from mmcl.training.run_folder import FolderError, exclusive_folder, has_begun, remove_on_failure


def train(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    show_progress: bool | None = None,
) -> Run:
    """Train what a config describes.

    Args:
        config: path of a YAML file, a mapping or a ``Config``.
        out: the run folder; ``runs/NAME`` if absent.
        overrides: ``key=value`` strings, as the command line's ``--set``.
        resume: go on from the newest checkpoint in the run folder. The result equals that of an uninterrupted run.
        show_progress: a bar on stderr; for a terminal if absent. Otherwise a line now and then is logged.

    Raises:
        MmclError: the config, the data or the run folder is not as needed.
        DivergedError: the loss or the gradient stopped being finite.
        KeyboardInterrupt: as it comes, saying at which step and how to go on.
    """
    config = load_config(config, overrides)
    folder = Path(out) if out is not None else Path("runs") / config.name
    with distributed.translate_comm_errors(lambda: _how_to_go_on(folder, "all of them")):
        return _train(config, folder, resume, show_progress)


def _train(config: Config, folder: Path, resume: bool, show_progress: bool | None) -> Run:
    with exclusive_folder(folder) as new:
        try:
            with remove_on_failure(folder, new):
                if resume and has_begun(folder):
                    config = _with_what_it_has(config, Run(folder).config)
                trainer = Trainer(config, folder, resume=resume, show_progress=show_progress)
        except FolderError:
            if distributed.world_size() == 1:
                check_config(config, show_progress)  # its mistakes come first: another folder would not mend them
            raise
        try:
            trainer.fit()
        except NotFiniteError as error:
            raise _diverged(error, trainer) from None
        except KeyboardInterrupt:
            message = f"interrupted at step {trainer.progress.step} of {trainer.steps}; {_how_to_go_on(folder, 'it')}"
            raise KeyboardInterrupt(message) from None
    return Run(folder)


def _with_what_it_has(config: Config, begun: Config) -> Config:
    """``config`` with what a run that has ``begun`` has found, or has by its version, where it leaves that open."""
    training, data = config.training, config.data
    if training.micro_batch == "auto":
        training = training.model_copy(update={"micro_batch": begun.training.micro_batch})
    if training.precision == "auto":
        training = training.model_copy(update={"precision": begun.training.precision})
    if data.image.stored is None:
        image = data.image.model_copy(update={"stored": begun.data.image.stored})
        data = data.model_copy(update={"image": image})
    return config.model_copy(update={"training": training, "data": data})


def _how_to_go_on(folder: Path, run: str) -> str:
    if checkpoints := list_checkpoints(folder):
        return f"start {run} again with --resume, which goes on from {checkpoints[-1]}"
    flag = " with --resume" if has_begun(folder) else ""
    return f"start {run} again{flag}, from the first step: there is no checkpoint yet"


def _diverged(error: NotFiniteError, trainer: Trainer) -> DivergedError:
    """What a run says that ends so; the rows of the batch, if it was one, are written to ``diverged.json``."""
    step, folder, rows = trainer.progress.step, trainer.folder, ""
    if error.batch is not None:
        step += 1
        ids = distributed.gather_lists(trainer.feed.names(error.batch))
        path = folder / "diverged.json"
        if distributed.rank() == 0:
            write_json(path, {"step": step, "what": error.what, "rows": ids})
        rows = f"the batch's row ids are in {path} (first: {', '.join(ids[:3])}); "
    if not step:
        return DivergedError(f"{folder}: {error} before the first step, by the model that it starts from")
    checkpoints = list_checkpoints(folder)
    last = checkpoints[-1] if checkpoints else "none yet"
    if not trainer.progress.step and error.what == "loss":  # at any rate, nothing has been learned yet
        return DivergedError(
            f"{folder}: {error} at step 1, by the model that it starts from or by what is in the batch; {rows}"
            "look at both"
        )
    return DivergedError(
        f"{folder}: diverged: {error} at step {step}; {rows}last good checkpoint: {last}; start anew with a "
        "lower training.lr"
    )

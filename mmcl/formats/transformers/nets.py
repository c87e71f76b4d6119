"""What the towers that come from transformers share: finding, opening, filling, rebuilding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmcl.data import samples
from mmcl.formats.hub import fetch
from mmcl.formats.plausible import require_plausible, require_size, weights_bytes
from mmcl.formats.tensor_files import require_finite, require_intact_weights, require_readable_weights
from mmcl.formats.transformers.architectures import named_class, text_class, with_fresh_weights
from mmcl.runtime.errors import MmclError, first_line


def open_net(name: str, folder: Path, weights: bool) -> tuple[Any, bool]:
    """The text encoder in a folder of transformers, and whether its pooler was not among the weights.

    Args:
        name: for messages.
        folder: with its ``config.json``.
        weights: load them, rather than draw new ones.

    Raises:
        MmclError: it is no text encoder, or a file is missing, damaged, or of another model.
    """
    config = read_config(folder, f"text model '{name}'")
    where = f"text model '{name}': cannot be opened as a transformers encoder"
    kind = text_class(config, where)
    with opening(where, folder if weights else None):
        if not weights:
            return with_fresh_weights(kind, config), True
        most = weights_bytes(folder)
        require_plausible(config.to_dict(), most, folder)
        require_size(partial(with_fresh_weights, kind, config), most, folder)
        net, report = kind.from_pretrained(
            folder,
            trust_remote_code=False,
            dtype=torch.float32,
            use_safetensors=None,
            weights_only=True,
            output_loading_info=True,
        )
    # What is missing transformers draws anew, and says so in a report that is easily missed.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise MmclError(f"text model '{name}': its weights lack {len(missing)} tensors, such as '{missing[0]}'")
    require_finite(net.named_parameters(), folder)
    return net, bool(report["missing_keys"])


def read_config(source: str | Path, where: str) -> Any:
    """The transformers config in a folder or under a hub name.

    Raises:
        MmclError: it is missing, damaged, of no known architecture, or would fetch code from the hub.
    """
    from transformers import AutoConfig

    with opening(f"{where}: its config.json cannot be opened"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        refuse_code(config, f"{where}: its config.json")
        return config


def refuse_code(config: Any, where: str) -> None:
    """Look for names of the hub's code in a transformers config and in those within it.

    Raises:
        MmclError: it has one, and transformers would fetch and run it when the model is built.
    """
    for kind in ("_attn_implementation", "_experts_implementation"):
        if isinstance(code := getattr(config, kind, None), str) and "/" in code:
            raise MmclError(f"{where} names code of the hub, '{code}', which is not run; remove that line")
    for name in getattr(config, "sub_configs", {}):
        if (within := getattr(config, name, None)) is not None:
            refuse_code(within, where)


@contextmanager
def opening(what: str, folder: Path | None = None) -> Iterator[None]:
    """Whatever transformers raises for a file of somebody's becomes one line.

    Args:
        what: how the line begins.
        folder: whose weights are being read; if they are at fault the line says how.

    Raises:
        MmclError: the block raised something.
    """
    if folder is not None:
        require_readable_weights(folder)
    try:
        with quiet_transformers():
            yield
    except MmclError:
        raise
    except Exception as error:  # it checks little of what it reads: anything may come of a damaged file
        if folder is not None:
            require_intact_weights(folder)
        raise MmclError(f"{what}: {first_line(error)}") from None


def fill(net: Any, folder: Path) -> None:
    """Give ``net`` the weights that its ``save_pretrained`` wrote into ``folder``.

    transformers reads them, since it writes the tensors of several architectures, such as NomicBERT's, under the names
    that they have on the hub, and leaves out what is tied.

    Raises:
        MmclError: they are missing, damaged, or of another architecture.
    """
    if not any(folder.glob("model*.safetensors")):
        raise MmclError(f"{folder / 'model.safetensors'}: the weights are missing; take a fresh copy of the model")
    others = f"{folder}: not the weights of the model that the folder describes"
    with opening(others, folder):
        read, report = type(net).from_pretrained(
            folder,
            trust_remote_code=False,
            config=copy.deepcopy(net.config),
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    for kind in ("missing", "unexpected"):
        if keys := sorted(report[f"{kind}_keys"]):
            raise MmclError(f"{others}: {kind} {keys[0]} and {len(keys) - 1} more")
    require_finite(read.named_parameters(), folder)
    net.load_state_dict(read.state_dict())


def rebuild(config: Mapping[str, Any], architecture: str | None = None, most: int | None = None) -> Any:
    """A model with fresh weights from what ``config.to_diff_dict()`` gave.

    Args:
        config: with its ``model_type``.
        architecture: the class, such as ``CLIPTextModelWithProjection``; the type's base model if absent.
        most: bytes of the weights that it is to have.

    Raises:
        MmclError: this version of transformers has no such architecture, or it is far larger than ``most``.
    """
    from transformers import AutoConfig, AutoModel

    settings = {name: value for name, value in config.items() if name != "auto_map"}
    described = AutoConfig.for_model(settings.pop("model_type"), **settings)
    refuse_code(described, f"the description of a {described.model_type} model")
    kind = AutoModel if architecture is None else named_class(architecture)
    build = partial(with_fresh_weights, kind, described)
    if most is not None:
        require_size(build, most, f"a {described.model_type} model")
    return build()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars and its report on the pooler that is left out on purpose."""
    from transformers.utils import logging as settings

    verbosity, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if bars:
            settings.enable_progress_bar()


def local_folder(name: str) -> Path:
    """The folder of a model: itself, a sample's, or a snapshot of a hub name.

    Raises:
        MmclError: there is no such folder, and the hub has no such model or cannot be reached.
    """
    if name.startswith("sample:"):
        return samples.get(name.removeprefix("sample:"))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    return fetch(name)

"""Any model that we know, as towers: our folders, open_clip's, transformers', sentence-transformers', adapters."""

from __future__ import annotations

import logging
from pathlib import Path

from mmcl.data.processors.text import TextProcessor
from mmcl.formats.folder import DESCRIPTION, read_folder
from mmcl.formats.lora import ADAPTER, adapter_base, adapts_itself, merge_adapter
from mmcl.formats.open_clip import models as open_clip_models
from mmcl.formats.sentence_transformers.read import (
    MODULES,
    SentenceTransformersSettings,
    read_settings,
    read_token_weights,
)
from mmcl.formats.tensor_files import require_finite
from mmcl.formats.tokenizers import read_tokenizer
from mmcl.formats.towers.text import open_text_tower
from mmcl.formats.transformers import clip as transformers_clip
from mmcl.formats.transformers.nets import local_folder
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.limits import count_positions, tightest
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, first_line
from mmcl.runtime.files import as_path, read_json

log = logging.getLogger("mmcl")


def open_model(name: str | Path) -> Towers:
    """The towers of a model, on the CPU, in evaluation mode.

    Args:
        name: as for :func:`mmcl.load`.

    Raises:
        MmclError: there is no such model, it is damaged, a newer mmcl wrote it, or the name computes another activation
            than its weights were trained with.
    """
    text = str(name)
    try:
        towers = _open(text)
    except MmclError:
        raise
    except PermissionError as error:
        raise MmclError(f"{error.filename or text}: there is no permission to read it; ask its owner") from None
    except Exception as error:
        # Four libraries build networks from what the files say, and check little of it. A full disk is not their fault.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise MmclError(f"{text}: damaged, or of a kind that cannot be opened ({first_line(error)})") from error
    require_finite(towers.embedders.named_parameters(), text)
    return towers.eval()


def _open(text: str) -> Towers:
    if text.startswith("hf-hub:"):
        return open_clip_models.open_hub(text.removeprefix("hf-hub:"))
    path = as_path(text)
    if path.is_file():
        towers = open_clip_models.open_file(path)
        towers.path = path
        return towers
    if _may_be_a_name(text) and open_clip_models.is_model_name(text):
        return open_clip_models.open_named(text)
    return _open_folder(text)


def _may_be_a_name(text: str) -> bool:
    return not Path(text).expanduser().is_dir() and not text.startswith((".", "/", "~", "runs/", "sample:"))


def _open_folder(text: str) -> Towers:
    """A folder of any kind that we know, or the snapshot of a hub name."""
    is_path = text.startswith((".", "/", "~", "runs/")) or text.count("/") > 1
    if is_path and not Path(text).expanduser().is_dir():
        raise MmclError(f"{text}: there is no such folder; give a model folder, a run folder or a hub name")
    folder = local_folder(text)
    if (folder / "model" / DESCRIPTION).is_file():
        folder = folder / "model"
    if (folder / DESCRIPTION).is_file():
        towers = read_folder(folder)
    elif (folder / open_clip_models.CONFIG).is_file():
        towers = open_clip_models.open_folder(folder)
    elif _model_type(folder) in transformers_clip.MODEL_TYPES:
        towers = transformers_clip.open_folder(folder, text)
    elif any((folder / name).is_file() for name in ("config.json", MODULES, ADAPTER)):
        towers = _open_text(folder, text)
    else:
        if snapshots := sorted(folder.glob("snapshots/*/")):  # the hub's cache of one model, rather than the model
            raise MmclError(f"{text}: keeps a model of the hub; give the folder of one snapshot, {snapshots[-1]}")
        known = f"neither {DESCRIPTION} nor {open_clip_models.CONFIG} nor config.json"
        raise MmclError(f"{text}: the folder holds no model ({known})")
    towers.path = folder
    return towers


def _model_type(folder: Path) -> str | None:
    """What kind of model transformers' config says it is; a sentence-transformers folder is of no kind."""
    if not (folder / "config.json").is_file() or (folder / MODULES).is_file():
        return None
    return read_json(folder / "config.json").get("model_type")


def _open_text(folder: Path, name: str) -> Towers:
    """A text encoder of sentence-transformers or transformers, or adapters for one."""
    settings = read_settings(folder)
    if (base := adapter_base(folder / settings.transformer)) is not None:
        if adapts_itself(folder / settings.transformer, base):
            raise MmclError(f"{folder}: its adapters are for models that are adapters for it in turn; name their base")
        if not (folder / MODULES).is_file():
            return _open_adapters(folder, base, name)
        processor, tower = _adapted_tower(folder / settings.transformer, base, settings)
    else:
        processor, tower = open_text_tower(str(folder))
    for dense in settings.dense[:1]:
        if dense.inputs != tower.width:
            raise MmclError(f"{dense.folder}: reads {dense.inputs} features, but the pooling gives {tower.width}")
    head = Head.from_layers(tower.width, [dense.layer for dense in settings.dense])
    for dense, linear in zip(settings.dense, head.linear_layers(), strict=True):
        dense.load_into(linear)
    towers = Towers({"text": TextEmbedder(processor, tower, head)}, _dim(head, tower.width), name)
    towers.conventions = conventions = settings.conventions
    if towers.dim < towers.width:
        log.info("%s: its vectors are cut to the first %d of %d dimensions", name, towers.dim, towers.width)
    if conventions.similarity != "cosine" and not conventions.normalize:
        log.warning("%s: its vectors are compared by %s: encode(normalize=False)", name, conventions.similarity)
    return towers


def _open_adapters(folder: Path, base: str, name: str) -> Towers:
    """What peft alone saved: the base says how to pool, and adapters change nothing but its weights."""
    towers = _open_folder(base)
    merge_adapter(towers.embedder("text").tower.net, folder)
    towers.name = name
    return towers


def _adapted_tower(source: Path, base: str, settings: SentenceTransformersSettings) -> tuple[TextProcessor, TextTower]:
    """Processor and tower of a sentence-transformers folder that holds adapters instead of a transformer."""
    adapted = _open_folder(base).text()
    net = adapted.tower.net
    merge_adapter(net, source)
    own = (source / "tokenizer_config.json").is_file()
    tokenizer = read_tokenizer(source) if own else adapted.processor.tokenizer
    max_tokens = tightest(settings.max_tokens or tokenizer.model_max_length, count_positions(net))
    processor = settings.processor(tokenizer, max_tokens)
    weighted = settings.token_weights
    token_weights = None if weighted is None else TokenWeights.of(read_token_weights(weighted))
    return processor, TextTower(net, processor, pooling=settings.pooling, token_weights=token_weights)


def _dim(head: Head, width: int) -> int:
    """How many dimensions ``head`` gives for ``width`` features."""
    return head.layers[-1].width if head.layers else width

"""Any model that we know, as towers: our folders, open_clip's, transformers', sentence-transformers', adapters."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mmcl.data.processors.text import TextProcessor
from mmcl.formats.folder import DESCRIPTION, read_folder
from mmcl.formats.lora import ADAPTER, adapter_base, adapts_itself, merge_adapter
from mmcl.formats.open_clip import models as open_clip_models
from mmcl.formats.sentence_transformers.layers import fill_layer
from mmcl.formats.sentence_transformers.read import MODULES, Pipeline, read_routes
from mmcl.formats.sentence_transformers.towers import Wanted, open_tower, pooled
from mmcl.formats.tensor_files import require_finite
from mmcl.formats.tokenizers import read_tokenizer
from mmcl.formats.transformers import clip as transformers_clip
from mmcl.formats.transformers import vision as transformers_vision
from mmcl.formats.transformers.nets import local_folder
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.limits import count_positions, tightest
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
    elif (kind := _model_type(folder)) is not None and transformers_clip.is_of_two_halves(kind):
        towers = transformers_clip.open_folder(folder, text)
    elif kind is not None and transformers_vision.is_vision_type(kind):
        towers = transformers_vision.open_folder(folder, text)
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
    """A text encoder of sentence-transformers or transformers, one for each route of a router, or adapters for one."""
    routes = read_routes(folder)
    first = next(iter(routes.by_name.values()))
    if len(routes.by_name) == 1 and not (folder / MODULES).is_file() and (base := adapter_base(folder)) is not None:
        return _open_adapters(folder, base, name)
    if len(routes.by_name) == 1 and first.reads == "CLIPModel":
        towers = _open_clip(first, name)
    else:
        embedders = {route: _embedder(pipeline, name) for route, pipeline in routes.by_name.items()}
        dims = {embedder.head.dim for embedder in embedders.values()}
        if len(dims) > 1:
            raise MmclError(f"{folder}: its routes give vectors of {' and '.join(map(str, sorted(dims)))} dimensions")
        towers = Towers(embedders, dims.pop(), name)
    default = routes.default if len(routes.by_name) > 1 else None
    towers.conventions = conventions = replace(first.conventions, text_tower=default)
    if towers.dim < towers.width:
        log.info("%s: its vectors are cut to the first %d of %d dimensions", name, towers.dim, towers.width)
    if conventions.similarity != "cosine" and not conventions.normalize:
        log.warning("%s: its vectors are compared by %s: encode(normalize=False)", name, conventions.similarity)
    return towers


def _embedder(pipeline: Pipeline, name: str) -> TextEmbedder:
    """The encoder of texts that a pipeline is."""
    if pipeline.reads == "Transformer" and (base := adapter_base(pipeline.source)) is not None:
        processor, tower = _adapted_tower(pipeline, base)
    else:
        processor, tower = open_tower(pipeline, Wanted(name))
    return TextEmbedder(processor, tower, _head(pipeline, tower.width))


def _head(pipeline: Pipeline, width: int) -> Head:
    """The layers behind ``width`` features."""
    for stored in pipeline.layers:
        if stored.inputs is not None:
            if stored.inputs != width:
                raise MmclError(f"{stored.folder}: reads {stored.inputs} features, but the pooling gives {width}")
            break
    head = Head.from_layers(width, [stored.layer for stored in pipeline.layers])
    for stored, (_, modules) in zip(pipeline.layers, head.parts(), strict=True):
        fill_layer(stored.kind, modules, stored.folder)
    return head


def _open_clip(pipeline: Pipeline, name: str) -> Towers:
    """Both halves of a CLIP model that sentence-transformers keeps as one module."""
    towers = transformers_clip.open_folder(pipeline.source, name)
    for modality in towers.names:
        embedder = towers.embedder(modality)
        embedder.head = _head(pipeline, embedder.tower.width)
    towers.text().processor.set_prompts(pipeline.prompts, pipeline.default_prompt)
    towers.width = towers.text().head.dim
    return towers


def _open_adapters(folder: Path, base: str, name: str) -> Towers:
    """What peft alone saved: the base says how to pool, and adapters change nothing but its weights."""
    if adapts_itself(folder, base):
        raise MmclError(f"{folder}: its adapters are for models that are adapters for it in turn; name their base")
    towers = _open_folder(base)
    merge_adapter(towers.embedder("text").tower.net, folder)
    towers.name = name
    return towers


def _adapted_tower(pipeline: Pipeline, base: str) -> tuple[TextProcessor, TextTower]:
    """Processor and tower of a sentence-transformers folder that holds adapters instead of a transformer."""
    source = pipeline.source
    if adapts_itself(source, base):
        raise MmclError(f"{source}: its adapters are for models that are adapters for it in turn; name their base")
    adapted = _open_folder(base).text()
    net = adapted.tower.net
    merge_adapter(net, source)
    own = (source / "tokenizer_config.json").is_file()
    tokenizer = read_tokenizer(source) if own else adapted.processor.tokenizer
    max_tokens = tightest(pipeline.max_tokens or tokenizer.model_max_length, count_positions(net))
    processor = pipeline.processor(tokenizer, max_tokens)
    return processor, pooled(pipeline, net, processor)

"""A model in the format of another library: open_clip, transformers, sentence-transformers, model2vec,
timm, torchvision, ONNX."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.data.processors.image import ImageProcessor
from mmcl.formats.backbones.write import backbone_writer
from mmcl.formats.folder import preprocessor
from mmcl.formats.onnx.graph import export_onnx, exportable, require
from mmcl.formats.open_clip.models import CONFIG
from mmcl.formats.open_clip.text import describe_text_tower
from mmcl.formats.sentence_transformers import model2vec
from mmcl.formats.sentence_transformers.write import cannot_express, write
from mmcl.formats.tokenizers import save_tokenizer
from mmcl.formats.towers.image import describe_image_tower
from mmcl.formats.transformers.nets import quiet_transformers, rebuild
from mmcl.formats.weights import pass_on, save_tensors
from mmcl.models.embedder import Embedder
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.open_clip import OpenClipTextTower
from mmcl.models.text.plain import PlainTextTower
from mmcl.models.text.static import WordTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import atomic_folder, folder_to_write
from mmcl.runtime.full_disk import full_disk_is_oserror

log = logging.getLogger("mmcl")
TARGETS = ("open-clip", "transformers", "sentence-transformers", "model2vec", "timm", "torchvision", "onnx")
_HALVES = {"vision": "image", "text": "text"}  # as transformers calls them
_UNKNOWN_SCALE = math.log(1 / 0.07)  # what CLIP starts from


def export(towers: Towers, to: str, folder: Path) -> Path:
    """Write a model as a folder of another library's, with equal outputs there.

    Args:
        towers: to be exported.
        to: ``open-clip`` (``open_clip.create_model_and_transforms("local-dir:FOLDER")``), ``transformers``
            (``AutoModel.from_pretrained``), ``sentence-transformers`` (``SentenceTransformer``), ``model2vec``
            (``StaticModel.from_pretrained``, of a static embedding), ``timm`` or
            ``torchvision`` (the network of the image tower as a state dict, without head), or ``onnx`` (a model folder
            with the text tower's graph, for ``mmcl.load(folder, backend="onnx")``; needs ``mmcl[onnx]``).
        folder: to be written; it has to be new or empty. An earlier export looks like another model's folder,
            which may be the only copy there is.

    Raises:
        MmclError: that library has no such model, and the message says why; or ``folder`` holds something.
    """
    write = _writer(towers, to)
    folder = folder.expanduser()
    if folder_to_write(folder).is_dir() and any(folder.iterdir()):
        raise MmclError(f"{folder}: holds something already, which is not replaced; choose another folder, or empty it")
    with torch.no_grad(), atomic_folder(folder) as beside, full_disk_is_oserror(folder):
        write(beside)
    return folder


def cannot_export(towers: Towers, to: str) -> str | None:
    """Why ``towers`` cannot be exported to one of ``TARGETS``, found out without writing anything; None if it can."""
    try:
        _writer(towers, to)
    except MmclError as error:
        return str(error)
    return None


def _writer(towers: Towers, to: str) -> Callable[[Path], None]:
    """What writes ``towers`` into a folder; raises ``MmclError`` if the library has no such model."""
    ways: dict[str, Callable[[Towers], Callable[[Path], None]]] = {
        "open-clip": _open_clip,
        "transformers": _transformers,
        "sentence-transformers": _sentence_transformers,
        "model2vec": _model2vec,
        "timm": partial(backbone_writer, library="timm"),
        "torchvision": partial(backbone_writer, library="torchvision"),
        "onnx": _onnx,
    }
    if to not in ways:
        raise MmclError(f"--to {to}: cannot be exported to that; {nearest(to, ways)}")
    if len(towers.names) > len(towers.modalities) and to != "sentence-transformers":  # which has routers
        names = ", ".join(towers.names)
        raise MmclError(
            f"{to} has one tower a modality at most, and '{towers.name}' has {names}; use mmcl's own folders"
        )
    return ways[to](towers)


def _open_clip(towers: Towers) -> Callable[[Path], None]:
    why = "open-clip needs an image and a text tower of open_clip's"
    if towers.modalities != {"image", "text"}:
        raise MmclError(f"{why}; '{towers.name}' embeds {' and '.join(towers.modalities)} only")
    image, text = towers.image(), towers.text()
    image_tower, text_tower = image.tower, text.tower
    if image_tower.spec.get("library") != "open_clip" or not isinstance(text_tower, OpenClipTextTower):
        other = (
            image_tower.spec["name"]
            if image_tower.spec.get("library") != "open_clip"
            else type(text_tower.net).__name__
        )
        raise MmclError(
            f"{why}; '{towers.name}' has {other}. Train with open_clip:NAME for both towers to export there"
        )
    described = describe_image_tower(image.processor, image_tower)
    config = _model_config(towers, described, describe_text_tower(text.processor, text_tower))
    halves: dict[str, tuple[Embedder, str | None]]
    halves = {half: (embedder, _projection(embedder, half)) for half, embedder in (("visual", image), ("text", text))}

    def write(folder: Path) -> None:
        state = {
            name: of for half, (embedder, at) in halves.items() for name, of in _folded(embedder, half, at).items()
        }
        _write_open_clip(towers, folder, config, state)
        if hf := text_tower.spec["config"]["text_cfg"].get("hf_config"):
            (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")

    return write


def _write_open_clip(towers: Towers, folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    processor = towers.text().processor
    state["logit_scale"] = torch.tensor(_UNKNOWN_SCALE if towers.logit_scale is None else towers.logit_scale)
    if towers.logit_bias is not None:
        config["init_logit_bias"] = towers.logit_bias
        state["logit_bias"] = torch.tensor(towers.logit_bias)
    if processor.max_tokens < (context := config["text_cfg"].get("context_length", 77)):
        log.warning("open-clip cuts texts at %d tokens, '%s' at %d", context, towers.name, processor.max_tokens)
    description = {"model_cfg": config, "preprocess_cfg": _preprocess_config(towers.image().processor)}
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    save_tensors(folder / "open_clip_model.safetensors", state)
    save_tokenizer(processor.tokenizer, folder)


def _model_config(towers: Towers, image: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """open_clip's config of both towers together."""
    visual, textual = image["config"], text["config"]
    if image.get("resized"):
        raise MmclError(f"open-clip builds '{image['name']}' for another image size than {image['size']} only")
    vision_cfg, text_cfg = dict(visual["vision_cfg"]), dict(textual["text_cfg"])
    for half in (vision_cfg, text_cfg):  # the tokens are for the captions of a CoCa, of which this is the other part
        half.pop("output_tokens", None)
    if text_cfg.pop("hf_config", None):
        text_cfg["hf_model_pretrained"] = False
    # A ResNet and timm's networks have activations of their own, and so have transformers' text models.
    own = "timm_model_name" in vision_cfg or isinstance(vision_cfg.get("layers"), (list, tuple))
    indifferent = [own, "hf_model_name" in text_cfg]
    if visual["quick_gelu"] != textual["quick_gelu"] and not any(indifferent):
        raise MmclError(f"open-clip has one activation for both towers; '{towers.name}' has QuickGELU in one of them")
    quick = textual["quick_gelu"] if own else visual["quick_gelu"]
    config = {"embed_dim": towers.dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg, "custom_text": True}
    return config | ({"quick_gelu": True} if quick else {})


def _projection(embedder: Embedder, half: str) -> str | None:
    """Which of a tower's weights its head can be multiplied into, by open_clip's name; None where there is no head."""
    state = {f"{half}.{name}" for name in embedder.tower.net.state_dict()}
    layers = list(embedder.head)[1:]
    if not layers:
        return None
    if len(layers) > 1 or not isinstance(layers[0], nn.Linear) or layers[0].bias is not None:
        kind = embedder.head.config.kind if embedder.head.config else "such"
        raise MmclError(f"open-clip has no {kind} heads; '{half}' can be exported with a head of kind none or linear")
    projection = next(
        (name for name in ("proj", "text_projection", "attnpool.c_proj", "head.proj", "proj.weight")
         if f"{half}.{name}" in state or f"{half}.{name}.weight" in state),
        None,
    )  # fmt: skip
    if projection is None:
        raise MmclError(f"the head cannot be multiplied into a projection: open_clip's '{half}' tower here has none")
    return f"{half}.{projection}"


def _folded(embedder: Embedder, half: str, name: str | None) -> dict[str, Tensor]:
    """A tower's weights under open_clip's names, with a linear head multiplied into the projection ``name``."""
    state = {f"{half}.{key}": tensor.clone() for key, tensor in embedder.tower.net.state_dict().items()}
    if name is None:
        return state
    weight = embedder.head.linear_layers()[0].weight.to("cpu", torch.float64)  # (D, width)
    if name in state and not name.endswith(".weight"):  # a parameter (inner, width), which stands on the right
        state[name] = (state[name].cpu().double() @ weight.T).float()
        return state
    for part in ("weight", "bias"):
        if (full := f"{name.removesuffix('.weight')}.{part}") in state:
            state[full] = (weight @ state[full].cpu().double()).float()
    return state


def _preprocess_config(processor: ImageProcessor) -> dict[str, Any]:
    how = processor.resize.split("-")[0]
    return {
        "size": processor.size,
        "mode": "RGB",
        "mean": list(processor.mean),
        "std": list(processor.std),
        "interpolation": next((each for each in ("bilinear", "nearest") if f"-{each}" in processor.resize), "bicubic"),
        "resize_mode": {"crop": "shortest", "squash": "squash", "pad": "longest"}[how],
        "fill_color": 255 if how == "pad" else 0,
    }


def _transformers(towers: Towers) -> Callable[[Path], None]:
    for modality in sorted(towers.modalities):
        embedder = towers.embedder(modality)
        if not _is_transformers(embedder):
            raise MmclError(
                f"transformers opens only what came from there; the {modality} tower of '{towers.name}' did not"
            )
        if embedder.head.layers or getattr(embedder.tower, "token_layers", None) is not None:
            raise MmclError(f"transformers has no place for the {modality} head of '{towers.name}'; it would be lost")
    if len(towers.modalities) > 1:
        _joint_kind(towers)
    return lambda folder: _write_transformers(towers, folder)


def _write_transformers(towers: Towers, folder: Path) -> None:
    if len(towers.modalities) == 1:
        model: Any = towers.embedder(next(iter(towers.modalities))).tower.net
    else:
        model = _joint(towers)
    with quiet_transformers():
        model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        pass_on(path)
    if "text" in towers.modalities:
        texts = towers.text().processor
        save_tokenizer(texts.tokenizer, folder)
        if texts.prompts:
            log.warning("transformers keeps no prompts; '%s' has %s", towers.name, ", ".join(sorted(texts.prompts)))
    if "image" in towers.modalities:
        images = towers.image().processor
        if images.resize == "pad":
            log.warning("transformers has no white borders: its image processor squashes, '%s' pads", towers.name)
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(images), indent=2) + "\n", "utf-8")


def _is_transformers(embedder: Embedder) -> bool:
    if isinstance(embedder, ImageEmbedder):
        return bool(embedder.tower.spec.get("library") == "transformers")
    return not isinstance(embedder.tower, OpenClipTextTower | PlainTextTower | WordTower)


_JOINT = {"clip": True, "metaclip_2": True, "siglip": False, "siglip2": False}
"""Model types of two halves that are models themselves, to whether each holds a projection; SigLIP's have a bias."""


_JOINT = {"clip": True, "metaclip_2": True, "siglip": False, "siglip2": False}
"""Model types of two halves that are models themselves, to whether each holds a projection; SigLIP's have a bias."""


def _joint_kind(towers: Towers) -> str:
    """Which of ``_JOINT`` the two halves are of."""
    nets: list[Any] = [towers.embedder(modality).tower.net for modality in ("image", "text")]
    types = {str(net.config.model_type) for net in nets}
    for kind in _JOINT:
        if types == {f"{kind}_vision_model", f"{kind}_text_model"}:
            return kind
    kinds = " with ".join(sorted(types))
    raise MmclError(f"transformers has no model of {kinds}; only the halves of one CLIP, MetaCLIP 2 or SigLIP are one")


def _joint(towers: Towers) -> Any:
    """The model of transformers that the two halves are of."""
    halves: dict[str, Any] = {half: towers.embedder(modality).tower.net for half, modality in _HALVES.items()}
    kind = _joint_kind(towers)
    settings = {f"{half}_config": net.config.to_diff_dict() for half, net in halves.items()}
    scale = torch.tensor(_UNKNOWN_SCALE if towers.logit_scale is None else towers.logit_scale)
    state: dict[str, Tensor] = {}
    for half, net in halves.items():
        prefix = "" if _JOINT[kind] else f"{half}_model."
        state |= {prefix + name: tensor for name, tensor in net.state_dict().items()}
    if _JOINT[kind]:
        settings["projection_dim"] = towers.dim
    else:
        state["logit_bias"] = torch.tensor([towers.logit_bias or 0.0])
    model = rebuild({"model_type": kind, **settings})
    state["logit_scale"] = scale.reshape(model.logit_scale.shape)
    model.load_state_dict(state)
    return model


def _sentence_transformers(towers: Towers) -> Callable[[Path], None]:
    if "text" not in towers.modalities:
        raise MmclError(f"sentence-transformers needs a text tower; '{towers.name}' embeds images only")
    for name in towers.of_modality("text"):
        if why := cannot_express(towers.text(name)):
            raise MmclError(
                f"sentence-transformers cannot embed as '{towers.name}' does: {why}; mmcl's own folders can"
            )
    return lambda folder: write(towers, folder)


def _model2vec(towers: Towers) -> Callable[[Path], None]:
    if "text" not in towers.modalities:
        raise MmclError(f"model2vec needs a text tower; '{towers.name}' embeds images only")
    if why := model2vec.cannot_express(towers.text()):
        raise MmclError(f"model2vec cannot embed as '{towers.name}' does: {why}; see mmcl.distill_static")
    return lambda folder: model2vec.write_model2vec(towers, folder)


def _onnx(towers: Towers) -> Callable[[Path], None]:
    exportable(towers)
    require("onnx", "onnx")
    return lambda folder: export_onnx(towers, folder)

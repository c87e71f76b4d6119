"""Image encoders of transformers: any of its vision models, alone or as a tower."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcl.config.model import HeadConfig
from mmcl.formats.plausible import require_plausible, weights_bytes
from mmcl.formats.tensor_files import require_finite
from mmcl.formats.transformers.architectures import named_class
from mmcl.formats.transformers.image_processors import default_processor, preprocessing, read_processor
from mmcl.formats.transformers.nets import opening, read_config
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.outputs import has_own_vector
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

HALVES = ("VisionModel", "VisionModelWithProjection")
"""How the classes of image halves are called. ``AutoModel`` does not know of the projection of some, such as
``CLIPVisionModelWithProjection``, and knows nothing of others, such as ``MetaClip2VisionModel``."""


def is_vision_type(model_type: str) -> bool:
    """Whether transformers knows a model type, and it is one of images and not of texts."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(model_type)
    except ValueError:
        return False
    return not hasattr(config, "vocab_size") and any(hasattr(config, name) for name in ("image_size", "num_channels"))


def open_folder(folder: Path, name: str) -> Towers:
    """The image encoder in a transformers folder: a vision model, with its projection if the folder is of one with it.

    Raises:
        MmclError: something is missing or damaged, or its image processor cannot be followed.
    """
    config = read_config(folder, name)
    architecture = next((each for each in config.architectures or () if each.endswith(HALVES)), None)
    net, vector = open_net(folder, config, name, architecture)
    processor = read_processor(folder, name) or default_processor(config, name)
    images = preprocessing(processor, name)
    tower = ImageTower(net, vision_spec(net, name, vector), images)
    head = Head(HeadConfig(kind="none"), tower.width, tower.width)
    return Towers({"image": ImageEmbedder(images, tower, head)}, tower.width, name)


def vision_spec(net: Any, name: str, vector: str) -> dict[str, Any]:
    """What of an image tower's spec describes a vision model of transformers.

    Args:
        net: the model.
        name: of it.
        vector: how its features are read, see :func:`mmcl.models.outputs.vector_of`.
    """
    about = {"library": "transformers", "name": name, "architecture": type(net).__name__, "vector": vector}
    return {**about, "config": net.config.to_diff_dict()}


def open_net(source: str | Path, config: Any, where: str, architecture: str | None = None) -> tuple[Any, str]:
    """The vision model in a folder or of the hub, and how its features are read.

    Args:
        source: folder or hub name.
        config: of the model, or of the image half of one that is more.
        where: for messages.
        architecture: its class; the one that ``AutoModel`` finds if absent.

    Raises:
        MmclError: it is no vision model, or weights are missing or damaged.
    """
    folder = Path(source) if Path(source).is_dir() else None
    with opening(f"{where}: cannot be opened as a vision model of transformers", folder):
        if folder is not None:
            require_plausible(config.to_dict(), weights_bytes(folder), folder)
        net, report = _vision_class(config, architecture).from_pretrained(
            source,
            trust_remote_code=False,
            config=config,
            dtype=torch.float32,
            use_safetensors=None,
            weights_only=True,
            output_loading_info=True,
        )
        require_finite(net.named_parameters(), where)
    return net, vector_kind(net, set(report["missing_keys"]), where)


def _vision_class(config: Any, architecture: str | None) -> Any:
    from transformers import AutoModel

    if architecture is not None:
        return named_class(architecture)
    with torch.device("meta"):  # of a classifier too, the network without its last layer
        return type(AutoModel.from_config(config, trust_remote_code=False))


def vector_kind(net: Any, missing: set[str], where: str) -> str:
    """How the model's features are read, see :func:`mmcl.models.outputs.vector_of`. A pooler without weights is none.

    Args:
        net: a model of transformers.
        missing: names of its weights that were drawn anew.
        where: for messages.

    Raises:
        MmclError: it is no vision model, or other weights are missing.
    """
    if net.main_input_name != "pixel_values":
        raise MmclError(f"{where}: takes {net.main_input_name}, not images; choose a vision model")
    pooler = getattr(net, "pooler", None)
    if any(name.startswith("pooler.") for name in missing):
        pooler.requires_grad_(False)  # type: ignore[union-attr]  # unused: no gradient reaches it
    elif "spatial_shapes" in inspect.signature(net.forward).parameters:  # SigLIP 2's NaFlex, of patches
        return "pooled"
    elif lost := sorted(missing):
        raise MmclError(f"{where}: the weights lack {lost[0]} and {len(lost) - 1} more; is it another model's folder?")
    else:
        side = net.config.image_size if isinstance(getattr(net.config, "image_size", None), int) else 224
        training = net.training
        with torch.no_grad():
            output = net.eval()(torch.zeros(1, 3, side, side))
        net.train(training)
        if has_own_vector(output):
            return "pooled"
    return "cls" if _has_class_token(net) else "mean"


def _has_class_token(net: nn.Module) -> bool:
    return any(name.rsplit(".", 1)[-1] in ("cls_token", "class_embedding") for name, _ in net.named_parameters())

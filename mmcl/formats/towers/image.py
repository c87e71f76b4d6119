"""Image towers and the processors of their images: by name (``timm:…``, ``cifar:…``, ``open_clip:…``,
``transformers:…``), and as a model folder describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import nn

from mmcl.config.data import ImageConfig
from mmcl.config.model import ImageTowerConfig
from mmcl.data.processors.image import ImageProcessor
from mmcl.formats.backbones.read import load_backbone
from mmcl.formats.open_clip.models import colours as open_clip_colours
from mmcl.formats.open_clip.models import pretrained_model
from mmcl.formats.open_clip.nets import model_config, tower_config, visual_net, with_vision_settings
from mmcl.formats.tensor_files import require_finite
from mmcl.formats.transformers.image_processors import colours, read_processor
from mmcl.formats.transformers.nets import opening, read_config, rebuild
from mmcl.formats.transformers.vision import open_net, vector_kind, vision_spec
from mmcl.models.activations import checkpoint_activations, drop_patches
from mmcl.models.image.small_resnet import DEPTHS, small_resnet
from mmcl.models.image.tower import ImageTower
from mmcl.runtime.errors import MmclError, first_line, nearest
from mmcl.runtime.registry import Registry

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

IMAGE_TOWERS: Registry[Callable[[str, ImageTowerConfig, int], tuple[nn.Module, dict[str, Any]]]] = Registry(
    "mmcl.image_towers",
    "image tower",
    {
        "timm": "mmcl.formats.towers.image:timm_net",
        "cifar": "mmcl.formats.towers.image:cifar_net",
        "open_clip": "mmcl.formats.towers.image:open_clip_net",
        "transformers": "mmcl.formats.towers.image:transformers_net",
    },
)
"""What makes the network of ``KEY:NAME``, from NAME, the tower's settings and the size of the images in pixels. Beside
the network it returns what rebuilds it: ``name`` and ``args`` of the settings, and ``mean`` and ``std`` of the colours
that the network takes. Another package adds its own by the entry-point group ``mmcl.image_towers``."""


def build_image_tower(config: ImageTowerConfig, image: ImageConfig) -> tuple[ImageProcessor, ImageTower]:
    """The tower that the config names, behind the processor of images that ``image`` says.

    Raises:
        MmclError: the name, its weights or its arguments are not known.
    """
    net, about = create_net(config, image.size)
    processor, tower = _apart(net, {**about, **image.model_dump(exclude={"root"})})
    if config.checkpointing:
        checkpoint_activations(net, f"model.image.checkpointing: '{config.name}'")
    if config.patch_dropout:
        drop_patches(net, config.patch_dropout, processor.size, f"model.image.patch_dropout: '{config.name}'")
    return processor, tower


def describe_image_tower(processor: ImageProcessor, tower: ImageTower) -> dict[str, Any]:
    """What rebuilds both, weights apart."""
    return {**tower.spec, **asdict(processor)}


def rebuild_image_tower(spec: dict[str, Any]) -> tuple[ImageProcessor, ImageTower]:
    """Of what :func:`describe_image_tower` gave, the processor and the tower, with fresh weights."""
    return _apart(rebuild_net(spec), spec)


def _apart(net: nn.Module, spec: Mapping[str, Any]) -> tuple[ImageProcessor, ImageTower]:
    own = {field.name for field in fields(ImageProcessor)}
    processor = ImageProcessor(**{name: value for name, value in spec.items() if name in own})
    return processor, ImageTower(net, {name: value for name, value in spec.items() if name not in own}, processor)


def create_net(config: ImageTowerConfig, size: int) -> tuple[Any, dict[str, Any]]:
    """The network that the config names, for images of ``size`` pixels; and what of the tower's spec describes it.

    Raises:
        MmclError: the name, its weights or its arguments are not known.
    """
    library, _, model = config.name.partition(":")
    if library not in IMAGE_TOWERS or not model:
        *others, last = (f"'{name}:NAME'" for name in IMAGE_TOWERS)
        raise MmclError(f"image tower '{config.name}': expected {', '.join(others)} or {last}, such as 'timm:resnet18'")
    return IMAGE_TOWERS[library](model, config, size)


def rebuild_net(spec: Mapping[str, Any]) -> Any:
    """The network of what :func:`describe_image_tower` gave, with fresh weights."""
    if spec.get("library") == "open_clip":
        net = visual_net(spec["config"])
        if spec.get("resized"):
            net.set_input_size(spec["size"])
        return net
    if spec.get("library") == "transformers":
        return rebuild(spec["config"], spec["architecture"])
    settings = ImageTowerConfig(name=spec["name"], args=spec["args"])  # timm, cifar; open_clip as format 1 wrote it
    return create_net(settings, spec["size"])[0]


def timm_net(model: str, config: ImageTowerConfig, size: int) -> tuple[Any, dict[str, Any]]:
    """Any image model of timm, such as `timm:resnet18`."""
    import timm

    where = f"image tower 'timm:{model}'"
    if not timm.is_model(model):
        raise MmclError(f"{where}: timm has no such model; {nearest(model, timm.list_models())}")
    try:
        net = timm.create_model(model, pretrained=config.pretrained is True, num_classes=0, **config.args)
    except OSError as error:
        raise MmclError(f"{where}: its weights cannot be fetched ({first_line(error)})") from None
    except Exception as error:  # timm raises whatever its constructors meet
        raise MmclError(f"{where}: model.image.args does not fit it: {first_line(error)}") from None
    if config.pretrained is True:
        require_finite(net.named_parameters(), where)
    elif config.pretrained:
        load_backbone(net, config.pretrained, size, where)
    if hasattr(net, "set_input_size"):  # transformers with position embeddings for one size
        net.set_input_size(img_size=size)
    pretrained = getattr(net, "pretrained_cfg", None) or {}
    mean, std = (list(pretrained.get(name, (0.5,) * 3)) for name in ("mean", "std"))
    return net, {"name": config.name, "args": config.args, "mean": mean, "std": std}


def cifar_net(model: str, config: ImageTowerConfig, size: int) -> tuple[Any, dict[str, Any]]:
    """A ResNet for small images, such as `cifar:resnet18`, see :func:`mmcl.models.image.small_resnet.small_resnet`."""
    where = f"image tower 'cifar:{model}'"
    if model not in DEPTHS:
        raise MmclError(f"{where}: there is no such ResNet for small images; {nearest(model, DEPTHS)}")
    if config.pretrained is True:
        raise MmclError(f"{where}: nobody publishes weights of it; set model.image.pretrained to false or to a file")
    try:
        net = small_resnet(model, **config.args)
    except Exception as error:  # whatever timm's constructor meets
        raise MmclError(f"{where}: model.image.args does not fit it: {first_line(error)}") from None
    if config.pretrained:
        load_backbone(net, config.pretrained, size, where)
    return net, {"name": config.name, "args": config.args, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def open_clip_net(model: str, config: ImageTowerConfig, size: int) -> tuple[Any, dict[str, Any]]:
    """The visual tower of any open_clip model, such as `open_clip:ViT-B-32`."""
    where = f"image tower 'open_clip:{model}'"
    settings = model_config(model)
    native = settings["vision_cfg"].get("image_size", 224)
    with_vision_settings(settings, {**config.args, "image_size": size}, where)
    half = tower_config(settings, "vision_cfg")
    if config.pretrained:
        clip, tag = pretrained_model(model, config.pretrained, settings, where)
        net, (mean, std) = clip.visual, open_clip_colours(tag)
    else:
        net, (mean, std) = visual_net(half), open_clip_colours({})
    about: dict[str, Any] = {"library": "open_clip", "name": config.name, "config": half, "mean": mean, "std": std}
    if hasattr(net, "set_input_size") and size != native:  # timm's, which are built at their own size
        net.set_input_size(size)
        about["resized"] = True
    return net, about


def transformers_net(model: str, config: ImageTowerConfig, size: int) -> tuple[Any, dict[str, Any]]:
    """Any vision model of transformers, by hub name or folder, such as `transformers:facebook/dinov2-small`."""
    where = f"image tower 'transformers:{model}'"
    if isinstance(config.pretrained, str):
        raise MmclError(f"{where}: transformers takes true or false as 'pretrained'")
    if config.args:
        raise MmclError(f"{where}: model.image.args is for timm and open_clip; remove {', '.join(config.args)}")
    from transformers import AutoModel

    described = read_config(model, where)
    described = getattr(described, "vision_config", described)  # of a CLIP, the half for images
    if config.pretrained:
        net, vector = open_net(model, described, where)
    else:
        with opening(f"{where}: cannot be opened as a vision model of transformers"):
            if isinstance(getattr(described, "image_size", None), int):
                described.image_size = size
            net = AutoModel.from_config(described, trust_remote_code=False)
        vector = vector_kind(net, set(), where)
    mean, std = _processor_colours(model, where)
    return net, {**vision_spec(net, config.name, vector), "mean": mean, "std": std}


def _processor_colours(model: str, where: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by the model's image processor; a half each where it has none."""
    processor = read_processor(model, where)
    return ([0.5] * 3, [0.5] * 3) if processor is None else colours(processor, where)

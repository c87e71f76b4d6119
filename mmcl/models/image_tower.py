"""The tower that embeds pictures: any timm model, or the visual tower of any open_clip model."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmcl.config.schema import ImageConfig, ImageTowerConfig
from mmcl.data.images import ResizeMode
from mmcl.runtime.errors import MmclError, nearest


class ImageTower(nn.Module):
    """Pixels to features.

    Attributes:
        width: number of features.
        size: side of the square input, in pixels.
        resize: how a picture becomes that square (see ``ImageConfig``).
    """

    modality: ClassVar[str] = "image"
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, spec: dict[str, Any]) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.spec = spec
        self.size: int = spec["size"]
        self.resize: ResizeMode = spec["resize"]
        self.register_buffer("mean", torch.tensor(spec["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec["std"]).view(1, 3, 1, 1), persistent=False)
        self.width = self._measure_width()

    @classmethod
    def build(cls, config: ImageTowerConfig, image: ImageConfig) -> ImageTower:
        """Create the network that the config names.

        Raises:
            MmclError: the name, its weights or its arguments are not known.
        """
        net = _create(config.name, config.pretrained, config.args, image.size)
        mean, std = _statistics(net)
        spec = {"name": config.name, "args": config.args, **image.model_dump(), "mean": mean, "std": std}
        tower = cls(net, spec)
        if config.checkpointing:
            enable = getattr(net, "set_grad_checkpointing", None)
            if enable is None:
                raise MmclError(f"model.image.checkpointing: '{config.name}' does not support it; set it to false")
            enable(True)
        return tower

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> ImageTower:
        """Rebuild the architecture that ``spec`` describes, with fresh weights."""
        return cls(_create(spec["name"], False, spec["args"], spec["size"]), spec)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, width) features of uint8 (N, size, size, 3), or of float (N, 3, size, size) in [0, 1]."""
        if pixels.dtype == torch.uint8:
            # A channels-last picture permuted like this already has torch's channels_last strides: no copy.
            pixels = pixels.permute(0, 3, 1, 2).float() / 255
        features = self.net((pixels - self.mean) / self.std)
        return features[0] if isinstance(features, tuple) else features

    @torch.no_grad()
    def _measure_width(self) -> int:
        """Ask the network itself: libraries disagree about the attribute that holds the width after pooling."""
        self.eval()
        try:
            shape = self(torch.zeros(1, self.size, self.size, 3, dtype=torch.uint8)).shape
        except Exception as error:  # whatever a network of another input size or channel count meets
            raise MmclError(f"image tower '{self.spec['name']}': cannot read {self.size}-pixel RGB: {error}") from None
        self.train()
        if len(shape) != 2:
            raise MmclError(f"image tower '{self.spec['name']}': gives {tuple(shape)}, not one vector; check its args")
        return int(shape[1])


def _create(name: str, pretrained: str | bool, args: dict[str, Any], size: int) -> nn.Module:
    library, _, model = name.partition(":")
    if library == "timm" and model:
        if isinstance(pretrained, str):
            raise MmclError(
                f"image tower '{name}': timm takes true or false as 'pretrained'; a tag belongs to the name"
            )
        return _create_timm(model, pretrained, args, size)
    if library == "open_clip" and model:
        if args:
            raise MmclError(f"image tower '{name}': model.image.args is for timm models; remove {', '.join(args)}")
        return _create_open_clip(model, pretrained, size)
    raise MmclError(f"image tower '{name}': expected 'timm:NAME' or 'open_clip:NAME', such as 'timm:resnet18'")


def _create_timm(model: str, pretrained: bool, args: dict[str, Any], size: int) -> nn.Module:
    import timm

    if not timm.is_model(model):
        raise MmclError(f"image tower 'timm:{model}': timm has no such model; {nearest(model, timm.list_models())}")
    try:
        net = timm.create_model(model, pretrained=pretrained, num_classes=0, **args)
    except OSError as error:
        raise MmclError(f"image tower 'timm:{model}': its weights cannot be fetched ({_first_line(error)})") from None
    except Exception as error:  # timm raises whatever its constructors meet
        raise MmclError(f"image tower 'timm:{model}': model.image.args does not fit it: {error}") from None
    if hasattr(net, "set_input_size"):  # transformers with position embeddings for one size
        net.set_input_size(img_size=size)
    return net


def _create_open_clip(model: str, pretrained: str | bool, size: int) -> nn.Module:
    import open_clip

    if model not in open_clip.list_models():
        cure = nearest(model, open_clip.list_models())
        raise MmclError(f"image tower 'open_clip:{model}': open_clip has no such model; {cure}")
    if pretrained is True:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise MmclError(f"image tower 'open_clip:{model}': 'pretrained' must name the weights; there are: {tags}")
    quiet = logging.root.manager.disable
    if not pretrained:
        logging.disable(logging.WARNING)  # that no weights were loaded is what was asked for
    try:
        whole = open_clip.create_model(model, pretrained=pretrained or None, force_image_size=size)
    except (OSError, RuntimeError) as error:
        raise MmclError(f"image tower 'open_clip:{model}': cannot be created ({_first_line(error)})") from None
    finally:
        logging.disable(quiet)
    return whole.visual


def _statistics(net: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the network expects of its input's colours."""
    mean = getattr(net, "image_mean", None)
    if mean is not None:  # open_clip
        return list(mean), list(net.image_std)  # type: ignore[arg-type]
    settings = getattr(net, "pretrained_cfg", None) or {}
    return list(settings.get("mean", (0.5,) * 3)), list(settings.get("std", (0.5,) * 3))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

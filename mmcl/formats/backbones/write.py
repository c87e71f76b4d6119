"""The network of an image tower as a state dict of torchvision or timm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmcl.data.processors.image import ImageProcessor
from mmcl.formats.backbones.read import WEIGHTS
from mmcl.formats.weights import save_tensors
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import write_json

log = logging.getLogger("mmcl")

_CLASSES = 1000
_SHARED = ("resnet", "resnext", "wide_resnet", "densenet")  # what torchvision and timm build alike
_TRAINING_ONLY = {"drop_rate", "drop_path_rate", "zero_init_last"}  # of timm's arguments
_SMALL_STEM = """\
net.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
net.maxpool = torch.nn.Identity()
"""
_CARD = """\
# {name}

The network of an image tower, without the heads that followed it.

```python
{code}
```

It takes RGB images of {size} × {size} pixels in [0, 1], minus {mean} and divided by {std}, the mean and standard
deviation of the colours, and gives {width} features{classifier}.
"""


@dataclass(frozen=True)
class Backbone:
    """How a library builds the network of an image tower.

    Attributes:
        library: ``torchvision`` or ``timm``.
        architecture: the name of the network there.
        args: what it is built with.
        small: whether it has the stem of :func:`mmcl.models.image.small_resnet.small_resnet`.
        size: of its images in pixels, where its weights depend on that.
    """

    library: str
    architecture: str
    args: dict[str, Any]
    small: bool
    size: int | None

    @property
    def classifier(self) -> str | None:
        """The name of the last layer in torchvision's networks, which are not built without one."""
        if self.library == "timm":
            return None
        return "classifier" if self.architecture.startswith("densenet") else "fc"

    def code(self) -> str:
        """The lines that open the exported weights."""
        imports = ["import torch"] * self.small + [f"import {self.library}", "from safetensors.torch import load_file"]
        arguments = "".join(f", {key}={value!r}" for key, value in self.args.items())
        makes = {
            "torchvision": f"torchvision.models.{self.architecture}()",
            "timm": f'timm.create_model("{self.architecture}", num_classes=0{arguments})',
        }[self.library]
        changes = _SMALL_STEM if self.small else ""
        if self.size is not None:
            changes += f"net.set_input_size(img_size={self.size})\n"
        return "\n".join([*imports, "", f"net = {makes}", f'{changes}net.load_state_dict(load_file("{WEIGHTS}"))'])


def backbone_of(towers: Towers, library: str) -> Backbone:
    """The network of the image tower in ``library``.

    Raises:
        MmclError: there is no image tower, or ``library`` has no such network.
    """
    if "image" not in towers.modalities:
        raise MmclError(f"{library} needs an image tower; '{towers.name}' embeds texts only")
    image = towers.image()
    name = str(image.tower.spec["name"])
    source, _, model = name.partition(":")
    if "library" in image.tower.spec or source not in ("timm", "cifar"):
        raise MmclError(f"{library} takes towers of the names timm:… and cifar:…; that of '{towers.name}' is {name}")
    args: dict[str, Any] = dict(image.tower.spec["args"])
    architecture, _, _ = model.partition(".")  # the tag names weights
    small = source == "cifar"
    width = args.pop("width", 64) if small else 64
    if width != 64 or (small and model == "resnet10"):
        raise MmclError(
            f"{library} has no network like {name} of width {width}, which '{towers.name}' is; of the cifar: towers it "
            "has those of 18 layers and more, of width 64"
        )
    if library == "torchvision" and not _in_torchvision(architecture):
        raise MmclError(
            f"torchvision has no network like timm's {architecture}, which '{towers.name}' is; it has the ResNets, "
            "ResNeXts and DenseNets, such as timm:resnet18"
        )
    if library == "torchvision" or small:
        if changed := sorted(args.keys() - _TRAINING_ONLY):
            raise MmclError(f"{library}'s {architecture} has no {changed[0]}, which model.image.args set")
        args = {}
    size = image.processor.size if hasattr(image.tower.net, "set_input_size") else None
    return Backbone(library, architecture, args, small, size)


def _in_torchvision(architecture: str) -> bool:
    from torchvision import models

    return architecture.startswith(_SHARED) and architecture in models.list_models(models)


def backbone_writer(towers: Towers, library: str) -> Callable[[Path], None]:
    """What writes the network of the image tower into a folder: ``model.safetensors``, a state dict that ``library``
    loads strictly, ``config.json``, which describes it as timm does, and ``README.md`` with the lines that open it.

    Heads and other towers are left out. The classifier that torchvision's networks have is written as zeros.

    Raises:
        MmclError: see :func:`backbone_of`.
    """
    backbone = backbone_of(towers, library)
    return lambda folder: _write(backbone, towers.image(), str(towers.name), folder)


def _write(backbone: Backbone, image: ImageEmbedder, name: str, folder: Path) -> None:
    width, processor, classifier = image.tower.width, image.processor, backbone.classifier
    if image.head.layers:
        log.warning("%s has no place for the image head of '%s': its %d features before the head are what is written",
                    backbone.library, name, width)  # fmt: skip
    state = image.tower.net.state_dict()
    if classifier is not None:
        state |= {f"{classifier}.weight": torch.zeros(_CLASSES, width), f"{classifier}.bias": torch.zeros(_CLASSES)}
    save_tensors(folder / WEIGHTS, state)
    write_json(folder / "config.json", _describe(backbone, width, processor))
    never_trained = f" to `{classifier}`, the classifier, which was never trained: its weights are zero"
    card = _CARD.format(
        name=name,
        code=backbone.code(),
        size=processor.size,
        mean=list(processor.mean),
        std=list(processor.std),
        width=width,
        classifier="" if classifier is None else never_trained,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _describe(backbone: Backbone, width: int, processor: ImageProcessor) -> dict[str, Any]:
    """In the vocabulary of timm, whose ``create_model("local-dir:FOLDER", pretrained=True)`` reads it, except for
    networks with attention windows at another size than their native one."""
    classes = 0 if backbone.classifier is None else _CLASSES
    return {
        "architecture": backbone.architecture,
        "num_classes": classes,
        "num_features": width,
        "model_args": backbone.args | ({} if backbone.size is None else {"img_size": backbone.size}),
        "pretrained_cfg": {
            "input_size": [3, processor.size, processor.size],
            "mean": list(processor.mean),
            "std": list(processor.std),
            "num_classes": classes,
            "classifier": backbone.classifier,
            "custom_load": False,
        },
    }

"""An image tower of patches: ``patches:8`` reads patches of 8 × 8 pixels."""

from typing import Any

from torch import nn

from mmcl.config.model import ImageTowerConfig


def patches_net(name: str, config: ImageTowerConfig, size: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network of ``patches:NAME``, and what rebuilds it.

    Args:
        name: side of a patch in pixels.
        config: of the tower; ``args: {width: 64}`` sets its width.
        size: side of the images in pixels.
    """
    patch, width = int(name), int(config.args.get("width", 64))
    if size % patch:
        raise ValueError(f"images of {size} pixels do not consist of patches of {patch}")
    net = nn.Sequential(
        nn.Conv2d(3, width, patch, stride=patch),
        nn.GroupNorm(1, width),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return net, {"name": config.name, "args": config.args, "mean": [0.5] * 3, "std": [0.5] * 3}

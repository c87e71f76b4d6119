"""ResNets for images of about 32 pixels."""

from __future__ import annotations

from typing import Any

from torch import nn

DEPTHS: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet10": ("BasicBlock", (1, 1, 1, 1)),
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
    "resnet101": ("Bottleneck", (3, 4, 23, 3)),
}
"""Name to the kind of residual block and the number of them in each of the four stages."""


def small_resnet(name: str, *, width: int = 64, **args: Any) -> nn.Module:
    """timm's ResNet with a 3×3 stem of stride 1 and without max-pooling (SimCLR, arXiv:2002.05709, appendix B.9).

    Images of 32 pixels leave the last stage as 4×4, where the stem for ImageNet would leave 1×1. Parameters are called
    as in torchvision's and timm's ResNets and have their shapes, but for the stem's.

    Args:
        name: of :data:`DEPTHS`.
        width: channels of the stem and of the first stage's blocks; each later stage has twice as many. Even.
        args: of ``timm.models.resnet.ResNet``.

    Raises:
        ValueError: ``width`` is odd or not positive.
    """
    from timm.models import resnet

    if width < 2 or width % 2:
        raise ValueError(f"width is {width}; an even number is needed")
    block, layers = DEPTHS[name]
    # timm fixes what follows its plain stem at 64 channels; of its deep stem only the width, 2 * stem_width, is kept.
    net = resnet.ResNet(
        getattr(resnet, block),
        layers,
        num_classes=0,
        stem_type="deep",
        stem_width=width // 2,
        channels=tuple(width * 2**stage for stage in range(4)),
        **args,
    )
    stem = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net.conv1 = stem
    net.maxpool = nn.Identity()
    return net

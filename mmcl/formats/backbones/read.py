"""Weights of an image tower from a state dict of torchvision or timm."""

from __future__ import annotations

from typing import Any

from mmcl.formats.tensor_files import read_tensors, require_finite
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path

WEIGHTS = "model.safetensors"
"""What the weights are called in a folder."""


def load_backbone(net: Any, source: str, size: int, where: str) -> None:
    """Fill a network of timm's from a state dict, its classifier left out.

    torchvision's ResNets, ResNeXts and DenseNets have the parameters of timm's.

    Args:
        net: without a classifier, for images of its native size. Its input size is set to ``size`` if the weights have
            the shapes of another size than the native one.
        source: a file of torchvision's or timm's weights, or a folder of ``mmcl export``.
        size: of the images in pixels.
        where: for the messages.

    Raises:
        MmclError: there is no such file, it is damaged, or of another network.
    """
    path = as_path(source)
    if not path.exists():
        raise MmclError(
            f"{where}: there is no file '{source}'; model.image.pretrained is true, false or a file of weights, and a "
            "tag belongs to the name"
        )
    if path.is_dir():
        path /= WEIGHTS
    classifier: Any = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or "fc"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    tensors = {
        name: tensor
        for name, tensor in read_tensors(path).items()
        if not name.startswith(tuple(f"{each}." for each in names))
    }
    require_finite(tensors.items(), path)
    own = net.state_dict()
    if hasattr(net, "set_input_size") and any(own[name].shape != tensors[name].shape for name in own.keys() & tensors):
        net.set_input_size(img_size=size)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise MmclError(f"{where}: {path} holds the weights of another network ({reason})") from None

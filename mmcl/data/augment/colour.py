"""Changes of colour: float images (n, 3, P) of P pixels with levels in [0, 1], in place, each by its own factor.

Each is torchvision's of the same name (``v2.functional``), which rounds the weights of luma to four digits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmcl.data.augment.parameters import NEUTRAL, on

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_CENTRES = torch.tensor([0.0, 2.0, 4.0])  # hues of red, green and blue, in sixths of the circle


def jitter(images: Tensor, orders: np.ndarray, factors: np.ndarray) -> None:
    """Change brightness, contrast, saturation and hue as ``ColorJitter``, of every image in its own order.

    Args:
        images: to change.
        orders: (n, 4), see :class:`~mmcl.data.augment.parameters.Parameters`.
        factors: (n, 4).
    """
    changes = factors != NEUTRAL
    for numbers in orders.T:
        for number in set(numbers.tolist()):
            chosen = changes[:, number] & (numbers == number)
            change_some(images, chosen, _JITTER[number], factors[:, number])


def change_some(images: Tensor, chosen: np.ndarray, change: Callable[..., object], *parameters: np.ndarray) -> None:
    """Call ``change`` for the images ``chosen`` (n,), with their ``parameters`` (n,) each."""
    rows = np.flatnonzero(chosen)
    if len(rows) == len(chosen):  # nothing is copied
        change(images, *(on(images.device, values) for values in parameters))
    elif len(rows):
        places = on(images.device, rows)
        part = images[places]
        change(part, *(on(images.device, values[rows]) for values in parameters))
        images.index_copy_(0, places, part)


def adjust_brightness(images: Tensor, factors: Tensor) -> None:
    """Multiply all levels by ``factors`` (n,)."""
    images.mul_(factors[:, None, None]).clamp_(max=1.0)


def adjust_contrast(images: Tensor, factors: Tensor) -> None:
    """Blend each image with the mean of its luma; factor 0 leaves nothing but that."""
    means = luma(images.mean(2, keepdim=True))[:, 0]
    images.mul_(factors[:, None, None]).add_((means * (1 - factors))[:, None, None]).clamp_(0.0, 1.0)


def adjust_saturation(images: Tensor, factors: Tensor) -> None:
    """Blend each pixel with its luma; factor 0 leaves greys."""
    torch.lerp(luma(images)[:, None], images, factors[:, None, None], out=images).clamp_(0.0, 1.0)


def adjust_hue(images: Tensor, shifts: Tensor) -> None:
    """Turn the hue of HSV by ``shifts`` (n,) of the circle.

    With V the largest and m the smallest level of a pixel, C = V − m and h the hue in sixths of the circle from red, a
    channel whose own hue is k has the level clamp(||h − k| − 3| C − C + m, m, V). C·h needs no division: from red
    it is ±(G + B − R + V − 2m), with the sign of G − B, and so greys need no case of their own.
    """
    red, green, blue = images.unbind(1)
    largest, smallest = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(largest, blue, out=largest)
    torch.minimum(smallest, blue, out=smallest)
    chroma = largest - smallest
    hue = torch.add(green, blue).sub_(red).add_(largest).sub_(smallest, alpha=2).copysign_(green - blue)
    turns = (6 * shifts[:, None] - _CENTRES.to(shifts) + 3) % 6 - 3  # (n, 3) to within half the circle
    torch.addcmul(hue[:, None], chroma[:, None], turns[:, :, None], out=images)
    images.abs_().sub_(chroma[:, None], alpha=3).abs_().add_((smallest - chroma)[:, None])
    torch.clamp(images, smallest[:, None], largest[:, None], out=images)


_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def drop_colour(images: Tensor) -> None:
    """Luma in all three channels."""
    images.copy_(luma(images)[:, None].expand_as(images))


def solarise(images: Tensor) -> None:
    """Invert the levels from a half on."""
    torch.minimum(images, 1 - images, out=images)


def luma(images: Tensor) -> Tensor:
    """(n, P)."""
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])

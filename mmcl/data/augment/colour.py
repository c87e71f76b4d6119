"""Changes of colour: float images (n, 3, P) of P pixels with levels in [0, 1], in place, each by its own factor.

Each is torchvision's of the same name (``v2.functional``), which rounds the weights of luma to four digits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmcl.data.augment.parameters import NEUTRAL, on

_LUMA = torch.tensor([[[0.299, 0.587, 0.114]]])  # ITU-R BT.601
_CENTRES = np.array([[0], [2], [4]], dtype=np.float32)  # hues of red, green and blue, in sixths of the circle


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
    count = np.count_nonzero(chosen)
    if count == len(chosen):  # nothing is copied
        change(images, *parameters)
    elif count:
        places = on(images.device, np.flatnonzero(chosen))
        part = images[places]
        change(part, *(values[chosen] for values in parameters))
        images.index_copy_(0, places, part)


def adjust_brightness(images: Tensor, factors: np.ndarray) -> None:
    """Multiply all levels by ``factors`` (n,)."""
    images.mul_(_scales(factors, images))
    _clamp(images, factors)


def adjust_contrast(images: Tensor, factors: np.ndarray) -> None:
    """Blend each image with the mean of its luma; factor 0 leaves nothing but that."""
    torch.lerp(luma(images.mean(2, keepdim=True)), images, _scales(factors, images), out=images)
    _clamp(images, factors)


def adjust_saturation(images: Tensor, factors: np.ndarray) -> None:
    """Blend each pixel with its luma; factor 0 leaves greys."""
    torch.lerp(luma(images), images, _scales(factors, images), out=images)
    _clamp(images, factors)


def adjust_hue(images: Tensor, shifts: np.ndarray) -> None:
    """Turn the hue of HSV by ``shifts`` (n,) of the circle.

    With V the largest and m the smallest level of a pixel, C = V − m and h the hue in sixths of the circle from red, a
    channel whose own hue is k has the level clamp(||h − k| − 3| C − C + m, m, V). C·h needs no division: from red
    it is ±(G + B − R + C − m), with the sign of G − B, and so greys need no case of their own.
    """
    red, green, blue = images.chunk(3, dim=1)
    largest, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = largest - smallest
    below = smallest - chroma
    hue = torch.add(green, blue).sub_(red).sub_(below).copysign_(green - blue)
    turns = (6 * shifts[:, None, None] - _CENTRES + 3) % 6 - 3  # (n, 3, 1) to within half the circle
    torch.addcmul(hue, chroma, on(images.device, turns), out=images)
    images.abs_().sub_(chroma, alpha=3).abs_().add_(below)
    torch.clamp(images, smallest, largest, out=images)


def _scales(factors: np.ndarray, images: Tensor) -> Tensor | float:
    """Factors (n,) of images (n, 3, P); of a single one a number, with which torch takes less time."""
    return on(images.device, factors)[:, None, None] if len(factors) > 1 else float(factors[0])


def _clamp(images: Tensor, factors: np.ndarray) -> None:
    """Levels to [0, 1], which only factors above 1 leave."""
    if max(factors.tolist()) > 1:
        images.clamp_(0.0, 1.0)


_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def drop_colour(images: Tensor) -> None:
    """Luma in all three channels."""
    images.copy_(luma(images).expand_as(images))


def solarise(images: Tensor) -> None:
    """Invert the levels from a half on."""
    torch.minimum(images, 1 - images, out=images)


def luma(images: Tensor) -> Tensor:
    """(n, 1, P)."""
    return _LUMA.to(images.device) @ images

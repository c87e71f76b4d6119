"""The blur equals torchvision's of every kernel that is large enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from mmcl.data.augment.blur import gaussian_blur


@pytest.mark.parametrize("shape", [(32, 32), (37, 50), (16, 71)])
@pytest.mark.parametrize("kernel", [13, 23])
def test_blur_equals_torchvisions_to_half_a_level(noise, kernel: int, shape: tuple[int, int]) -> None:
    images = noise(5, *shape).permute(0, 3, 1, 2) / 255
    sigmas = np.array([0.1, 0.5, 1.0, 1.5, 2.0])
    for image, sigma, ours in zip(images, sigmas.tolist(), gaussian_blur(images, sigmas), strict=True):
        theirs = reference.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
        assert (ours - theirs).abs().max() < 0.5 / 255


def test_a_sample_does_not_depend_on_the_widths_beside_it(noise) -> None:
    images = noise(4).permute(0, 3, 1, 2) / 255
    sigmas = np.array([0.2, 2.0, 0.9, 0.1])
    alone = torch.cat([gaussian_blur(images[i : i + 1], sigmas[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(gaussian_blur(images, sigmas), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 4)])
def test_images_smaller_than_the_kernel_keep_their_mean_level(shape: tuple[int, int]) -> None:
    images = torch.full((1, 3, *shape), 0.4)
    torch.testing.assert_close(gaussian_blur(images, np.array([2.0])), images)

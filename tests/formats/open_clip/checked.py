"""What several tests check of models of open_clip."""

from __future__ import annotations

import numpy as np
import pytest

import mmcl
from mmcl.runtime.errors import MmclError

from ..conftest import CAPTIONS, sample_images


def check_equal(encoder, images, texts):
    encoder.set_compute("float32")
    np.testing.assert_allclose(encoder.encode(sample_images()), images, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(CAPTIONS), texts, atol=1e-5)


def check_refused(name):
    with pytest.raises(MmclError) as caught:
        mmcl.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)

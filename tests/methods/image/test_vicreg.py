"""VICReg: its loss is that of the expanded views, each with statistics of its own, and its terms are logged."""

from __future__ import annotations

import torch

from mmcl.losses import vicreg
from mmcl.methods.image.image_only import by_view
from mmcl.methods.image.vicreg import Vicreg

from .settings import STEP


def test_views_are_expanded_one_by_one_and_compared(make, batch):
    method = make(Vicreg)
    outputs = method.outputs(batch)
    expanded = [method.heads["projector"](view) for view in by_view(outputs.embeddings["image"])]
    loss = method.loss(method.project(outputs), STEP)
    torch.testing.assert_close(loss.value, vicreg(*expanded, 2.0, 3.0, 4.0))
    assert loss.parts.keys() == {"invariance", "variance", "covariance"}
    weighted = zip((2.0, 3.0, 4.0), loss.parts.values(), strict=True)
    torch.testing.assert_close(loss.value, sum(weight * part for weight, part in weighted))
    assert method.compared_with() == "no negatives"

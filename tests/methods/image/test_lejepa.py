"""LeJEPA as a method: its two terms over all crops, and directions that depend on the step alone."""

from __future__ import annotations

import torch

from mmcl.losses import centre_prediction, sigreg
from mmcl.methods import Step
from mmcl.methods.image.image_only import by_view
from mmcl.methods.image.lejepa import Lejepa


def test_all_crops_predict_the_centre_of_the_global_ones_and_are_gaussian(make, batch):
    lejepa = make(Lejepa, regularisation=0.1)
    outputs = lejepa.project(lejepa.outputs(batch))
    crops = torch.cat([by_view(outputs.embeddings["image"]), by_view(outputs.embeddings["local"], 2)])
    assert crops.shape == (4, 6, 4)
    directions = torch.randn(4, 16, generator=torch.Generator().manual_seed(7))
    loss = lejepa.loss(outputs, Step(7, 10))
    prediction, gaussian = centre_prediction(crops), sigreg(crops, directions)
    torch.testing.assert_close(loss.value, 0.9 * prediction + 0.1 * gaussian)
    assert loss.parts == {"prediction": prediction, "sigreg": gaussian}
    assert lejepa.loss(outputs, Step(7, 20)).value == loss.value
    assert lejepa.loss(outputs, Step(8, 10)).value != loss.value
    assert lejepa.compared_with() == "no negatives"


def test_the_projector_sees_all_crops_in_one_pass(make, batch):
    lejepa = make(Lejepa)
    outputs = lejepa.outputs(batch)
    together = lejepa.heads["projector"](torch.cat(list(outputs.embeddings.values())))
    torch.testing.assert_close(torch.cat(list(lejepa.project(outputs).embeddings.values())), together)

"""DINO as a method: lightly's heads and losses over all crops, the centre, the schedules and the frozen last layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from mmcl.methods import Step
from mmcl.methods.image.dino import Dino, DinoConfig
from mmcl.methods.parts.centre import Centre

from .settings import STEP


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # lightly's
def test_all_crops_predict_the_copy_s_outputs_for_the_global_ones(make, batch):
    losses, heads = (pytest.importorskip(f"lightly.{name}") for name in ("loss", "models.modules.heads"))
    dino = make(Dino, student_temperature=0.2, teacher_temperature=(0.04, 0.1), teacher_warmup=1.0)
    sizes = dino.encoder.embedder("image").tower.sizes
    sizes.clear()
    outputs = dino.outputs(batch)
    assert sizes == [(12, 3, 16, 16), (18, 3, 8, 8)]
    dino.centre.value.copy_(torch.randn(5))
    loss = losses.DINOLoss(output_dim=5, student_temp=0.2)
    loss.center.copy_(dino.centre.value)

    def theirs(part):
        """lightly's head with the weights of ours."""
        head = heads.DINOProjectionHead(6, 8, 4, 5, norm_last_layer=True)
        projector, prototypes = part["projector"], part["prototypes"]
        head.layers = copy.deepcopy(projector)
        head.last_layer.weight_v.data.copy_(prototypes.weight)
        return head

    with torch.no_grad():
        for weight in dino.momentum.parts.parameters():  # not as the student's
            weight.add_(0.1 * torch.randn_like(weight))
    student_head, teacher_head = theirs(dino.heads), theirs(dino.momentum.parts)
    student = student_head(torch.cat([outputs.embeddings["image"], outputs.embeddings["local"]]))
    teacher = teacher_head(outputs.keys["image"])
    crops = [student[:12][0::2], student[:12][1::2], *(student[12:][n::3] for n in range(3))]
    expected = loss([teacher[0::2], teacher[1::2]], crops, teacher_temp=0.06)
    torch.testing.assert_close(dino.loss(dino.project(outputs), Step(3, 10)).value, expected)


def test_the_centre_moves_towards_the_mean_of_the_copy_s_outputs(make, batch):
    dino = make(Dino, centre_momentum=0.75)
    outputs = dino.project(dino.outputs(batch)).detached()
    weight = F.normalize(dino.momentum.parts["prototypes"].weight, dim=1)
    mean = (F.normalize(outputs.keys["image"], dim=1) @ weight.T).mean(0)
    dino.after_update(outputs, STEP)
    torch.testing.assert_close(dino.centre.value, 0.25 * mean)
    assert "centre.value" in dino.state_dict()


def test_the_centre_equals_lightly_s():
    center = pytest.importorskip("lightly.models.modules.center").Center((1, 5), momentum=0.9)
    torch.manual_seed(0)
    ours = Centre(5, 0.9)
    for _ in range(3):
        outputs = torch.randn(8, 5)
        ours.update(outputs)
        center.update(outputs)
    torch.testing.assert_close(ours.value, center.value.flatten())


def test_the_last_layer_stays_as_it_is_at_first(make, batch):
    dino = make(Dino, freeze_prototypes=2)
    for number, frozen in ((0, True), (1, True), (2, False)):
        outputs = dino.project(dino.outputs(batch))
        dino.loss(outputs, Step(number, 9)).value.backward()
        dino.before_update(Step(number, 9))
        assert (dino.heads["prototypes"].weight.grad is None) == frozen


def test_a_run_that_ends_before_the_last_layer_learns_is_told(make, caplog):
    dino = make(Dino, freeze_prototypes=8)
    dino.require_steps(9)
    assert not caplog.text
    dino.require_steps(8)
    assert "method.freeze_prototypes: 8, but the run has 8 steps, so that the prototypes never learn" in caplog.text


def test_without_local_crops_the_two_global_ones_predict_each_other(make, batch):
    dino = make(Dino, local_crops=0)
    outputs = dino.project(dino.outputs(batch))
    assert outputs.embeddings.keys() == {"image"}
    assert torch.isfinite(dino.loss(outputs, STEP).value)


def test_metrics_tell_both_kinds_of_collapse(make, batch):
    dino = make(Dino)
    outputs = dino.project(dino.outputs(batch)).detached()
    outputs.keys["image"][:] = outputs.keys["image"][0]  # one point
    assert dino.metrics(outputs)["spread"] == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        dino.momentum.parts["prototypes"].weight[:] = dino.momentum.parts["prototypes"].weight[
            0
        ]  # all dimensions alike
    assert dino.metrics(outputs)["entropy"] == pytest.approx(1.0, abs=1e-5)
    dino.centre.value[0] = -10.0  # one dimension has all
    assert dino.metrics(outputs)["entropy"] == pytest.approx(0.0, abs=1e-5)


def test_the_paper_s_settings():
    config = DinoConfig()
    assert (config.prototypes, config.projector.dim, config.projector.activation) == (65536, 256, "gelu")
    assert Step(15, 101).ramp(0.04, 0.07, 0.3) == pytest.approx(0.055)
    assert [Step(number, 101).ramp(0.04, 0.07, 0.3) for number in (0, 30, 100)] == pytest.approx([0.04, 0.07, 0.07])
    assert Step(0, 1).ramp(0.04, 0.07, 0.3) == Step(0, 9).ramp(0.04, 0.07, 0.0) == 0.07

"""SimCLR, BYOL and SwAV as methods: their losses against the papers' equations, and what changes after an update."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcl.config.load import load_config
from mmcl.losses import barlow_twins, nt_xent, sinkhorn, swapped_prediction
from mmcl.methods import Context, Step
from mmcl.methods.image.barlow_twins import BarlowTwins
from mmcl.methods.image.byol import Byol
from mmcl.methods.image.image_only import by_view
from mmcl.methods.image.simclr import Simclr
from mmcl.methods.image.sup_con import SupCon
from mmcl.methods.image.swav import Swav
from mmcl.runtime.errors import MmclError

from .settings import SETTINGS, STEP


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_method_is_one_short_file(kind):
    source = Path(__import__(kind.__module__, fromlist=["x"]).__file__)
    assert len(source.read_text().splitlines()) <= 120


def two_views(method, batch):
    """The pixels of both large views, those of a row side by side."""
    inputs = method.view_inputs(batch)
    if "image" in inputs:
        return inputs["image"]["pixels"]
    return torch.stack([view["pixels"] for view in inputs.values()], dim=1).flatten(0, 1)


@pytest.mark.parametrize("kind", SETTINGS)
def test_views_are_independent_draws_of_the_row_alone(make, batch, kind):
    method = make(kind)
    inputs = two_views(method, batch)
    assert inputs.shape == (12, 3, 16, 16)
    first, second = by_view(inputs.flatten(1))
    assert not torch.isclose(first, second).all(dim=1).any()
    part = batch.split([2, 4])[1]
    assert torch.equal(two_views(method, part), inputs[4:])


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_loss_changes_nothing_and_its_gradient_reaches_what_learns(make, batch, kind):
    method = make(kind)
    outputs = method.project(method.outputs(batch))
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    loss = method.loss(outputs, STEP)
    assert method.loss(outputs, STEP).value == loss.value
    method.metrics(outputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    loss.value.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("decoupled", [False, True])
def test_simclr_is_nt_xent_of_the_projections(make, batch, decoupled):
    simclr = make(Simclr, decoupled=decoupled)
    outputs = simclr.outputs(batch)
    hidden = simclr.heads["projector"][1](outputs.embeddings["image"])
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    first, second = simclr.heads["projector"][-1](hidden.relu()).unflatten(0, (6, 2)).unbind(1)
    expected = nt_xent(first, second, 0.5, ids=batch.ids, decoupled=decoupled)
    torch.testing.assert_close(simclr.loss(simclr.project(outputs), STEP).value, expected)
    assert simclr.negatives_per_query == 10


def test_byol_predicts_the_copys_projection_of_the_other_view(make, batch):
    byol = make(Byol)
    outputs = byol.project(byol.outputs(batch))
    online, target = (
        F.normalize(of["image"], dim=1).detach().double().numpy() for of in (outputs.embeddings, outputs.keys)
    )
    distances = [
        ((online[i] - target[j]) ** 2).sum() for r in range(6) for i, j in ((2 * r, 2 * r + 1), (2 * r + 1, 2 * r))
    ]
    assert byol.loss(outputs, STEP).value.item() == pytest.approx(np.sum(distances) / 6, rel=1e-5)
    assert not outputs.keys["image"].requires_grad


def test_byol_s_copy_takes_the_statistics_of_its_batch_and_follows_ever_more_slowly(make, batch):
    byol = make(Byol)
    own, copied = (part.tower.net for part in (byol.encoder.embedder("image"), byol.momentum.parts["image"]))
    assert copied[1].training
    assert not byol.eval().momentum.parts["image"].tower.net[1].training
    byol.train()
    torch.testing.assert_close(byol.outputs(batch).keys["image"], byol.outputs(batch).embeddings["image"])
    before = copied[0].weight.clone()
    with torch.no_grad():
        own[0].weight.add_(1.0)
    byol.after_update(byol.outputs(batch), Step(0, 10))
    torch.testing.assert_close(copied[0].weight, 0.9 * before + 0.1 * own[0].weight)
    after = copied[0].weight.clone()
    byol.after_update(byol.outputs(batch), Step(9, 10))
    torch.testing.assert_close(copied[0].weight, after, msg="at the last step the copy stands still")


@pytest.mark.parametrize("kind", [Byol, BarlowTwins])
def test_heads_take_the_batch_statistics_of_one_view_at_a_time(make, batch, kind):
    method = make(kind)
    outputs = method.outputs(batch)
    projected = by_view(method.project(outputs).embeddings["image"])
    for view, found in zip(by_view(outputs.embeddings["image"]), projected, strict=True):
        for head in method.heads.values():
            view = head(view)
        torch.testing.assert_close(found, view)


def test_barlow_twins_compares_the_projections_of_both_views_over_the_batch(make, batch):
    method = make(BarlowTwins, loss_scale=0.5)
    outputs = method.project(method.outputs(batch))
    first, second = outputs.embeddings["image"].unflatten(0, (6, 2)).unbind(1)
    torch.testing.assert_close(method.loss(outputs, STEP).value, 0.5 * barlow_twins(first, second, 0.0051))
    assert method.compared_with() == "no negatives"


def test_sup_con_pulls_all_views_of_a_label_together(make, batch):
    method = make(SupCon)
    outputs = method.project(method.outputs(batch))
    views = F.normalize(outputs.embeddings["image"].detach().double(), dim=1)
    labels = [label for label in (7, 8, 7, 7, 9, 8) for _ in range(2)]
    losses = []
    for i, label in enumerate(labels):
        others = [n for n in range(12) if n != i]
        log_total = (views[others] @ views[i] / 0.1).logsumexp(0)
        losses.append(np.mean([log_total - views[p] @ views[i] / 0.1 for p in others if labels[p] == label]))
    assert method.loss(outputs, STEP).value.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert method.compared_with() == "11 views for each, positives where the label is the same"


def test_swav_swaps_the_assignments_of_global_crops_among_all_crops_and_the_queue(make, batch):
    swav = make(Swav)
    sizes = swav.encoder.embedder("image").tower.sizes
    sizes.clear()  # the method has tried a local crop
    outputs = swav.project(swav.outputs(batch))
    assert sizes == [(12, 3, 16, 16), (24, 3, 8, 8)]
    crops = torch.cat([by_view(outputs.embeddings["image"]), by_view(outputs.embeddings["local"], 4)])
    assert crops.shape == (6, 6, 4)
    scores = crops @ swav.prototypes.weight.T
    expected = swapped_prediction(scores, sinkhorn(scores[:2]), 0.1)
    torch.testing.assert_close(swav.loss(outputs, STEP).value, expected)
    swav.after_update(outputs.detached(), STEP)
    stored = swav.queue.contents()
    together = torch.stack([torch.cat([crops[n], stored[name]]) for n, name in enumerate(("first", "second"))])
    assigned = sinkhorn(together @ swav.prototypes.weight.T)[:, :6]
    torch.testing.assert_close(swav.loss(outputs, STEP).value, swapped_prediction(scores, assigned, 0.1))


def test_prototypes_stay_as_they_are_at_first_and_of_unit_length_always(make, batch):
    swav = make(Swav)
    for number, frozen in ((0, True), (1, True), (2, False)):
        outputs = swav.project(swav.outputs(batch))
        swav.loss(outputs, Step(number, 9)).value.backward()
        swav.before_update(Step(number, 9))
        assert (swav.prototypes.weight.grad is None) == frozen
    with torch.no_grad():
        swav.prototypes.weight.mul_(3.0)
    swav.after_update(outputs.detached(), STEP)
    torch.testing.assert_close(swav.prototypes.weight.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("name", [kind.Config().name for kind in SETTINGS])
def test_without_augmentation_there_is_nothing_to_learn(name, tmp_path):
    from mmcl.training.build import build_method

    config = load_config({"method": name, "data": {"train": {"source": "x"}}, "model": {"image": {}}})
    with pytest.raises(MmclError, match="both views of an image are the same"):
        build_method(config, tmp_path)
    with pytest.raises(MmclError, match=r"^model\.text: method '.*' reads no texts"):
        build_method(load_config(config, ["model.text={}"]), tmp_path)


def test_a_ring_is_refused_where_the_loss_needs_the_batch(make):
    byol = make(Byol)
    context = Context({"image": "image"}, 6, "ring", augmentation=byol.context.augmentation)
    with pytest.raises(MmclError, match="method 'byol' needs the whole batch on every process; set it to gather"):
        Byol(byol.config, byol.encoder, context)
    assert Simclr(SETTINGS[Simclr], byol.encoder, context).across == "ring"


def test_crops_that_the_tower_cannot_read_are_named(tmp_path):
    from mmcl.training.build import build_method

    config = {
        "name": "small",
        "method": {"name": "swav", "local_size": 24, "projector": {"hidden": [8], "dim": 8}},
        "data": {"train": {"source": "sample:shapes", "split": "dev"}, "image": {"size": 32}},
        "model": {"dim": 8, "image": {"name": "timm:convnext_atto", "args": {"patch_size": 2}}},
        "augmentation": {"crop_scale": [0.5, 1.0]},
    }
    with pytest.raises(MmclError, match=r"method.local_size: the image tower cannot read images of 24 pixels"):
        build_method(load_config(config), tmp_path)

"""SimSiam as a method: lightly's loss and heads, and the statistics of one view at a time."""

from __future__ import annotations

import pytest
import torch

from mmcl.methods.image.image_only import by_view, per_view, spread
from mmcl.methods.image.simsiam import Simsiam, SimsiamConfig
from mmcl.methods.parts.heads import mlp_head

from .settings import STEP


def test_each_view_predicts_the_projection_of_the_other_which_gets_no_gradient(make, batch):
    loss = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    simsiam = make(Simsiam)
    outputs = simsiam.outputs(batch)
    first, second = by_view(outputs.embeddings["image"])
    projector, predictor = simsiam.heads["projector"], simsiam.heads["predictor"]
    (z_1, z_2), (p_1, p_2) = zip(*((z := projector(view), predictor(z)) for view in (first, second)), strict=True)
    theirs = 0.5 * (loss(p_1, z_2.detach()) + loss(p_2, z_1.detach()))
    ours = simsiam.loss(simsiam.project(outputs), STEP).value
    torch.testing.assert_close(ours, theirs)
    heads = [*projector.parameters(), *predictor.parameters()]
    for mine, other in zip(*(torch.autograd.grad(x, heads, retain_graph=True) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_heads_have_the_layers_of_the_paper_s():
    heads = pytest.importorskip("lightly.models.modules.heads")
    config = SimsiamConfig()
    for ours, theirs in (
        (mlp_head(config.projector, 512), heads.SimSiamProjectionHead(512, 2048, 2048)),
        (mlp_head(config.predictor, 2048), heads.SimSiamPredictionHead(2048, 512, 2048)),
    ):
        kinds = [
            [type(layer).__name__ for layer in net.modules() if not list(layer.children())] for net in (ours, theirs)
        ]
        assert kinds[0] == ["Dropout", *kinds[1]]
        sizes = [[tuple(w.shape) for w in net.parameters() if w.ndim == 2] for net in (ours, theirs)]
        assert sizes[0] == sizes[1]


def test_a_head_takes_the_statistics_of_one_view_at_a_time():
    torch.manual_seed(0)
    vectors = torch.randn(6, 2, 3)
    vectors[:, 1] = 5 * vectors[:, 1] + 7  # which all views together would show
    norm = torch.nn.BatchNorm1d(3, track_running_stats=False)
    normed = per_view(norm, vectors.flatten(0, 1)).unflatten(0, (6, 2))
    for view in normed.unbind(1):
        torch.testing.assert_close(view.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(view.var(0, unbiased=False), torch.ones(3), atol=1e-3, rtol=0)


def test_the_spread_is_one_on_the_sphere_and_none_where_all_is_one_point():
    torch.manual_seed(0)
    assert spread(torch.randn(4000, 64)) == pytest.approx(1.0, abs=0.01)
    assert spread(torch.randn(1, 64).expand(50, -1)) == pytest.approx(0.0, abs=1e-6)

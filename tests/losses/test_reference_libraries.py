"""The losses as others have them: signatures, values and gradients in float64; and finite wherever they are used."""

from __future__ import annotations

import inspect

import pytest
import torch

from mmcl import losses

SIGNATURES = {
    "nt_xent": "(view_a, view_b, temperature=0.5)",
    "sup_con": "(features, labels, temperature=0.07)",
    "barlow_twins": "(a, b, redundancy_weight=0.005)",
    "negative_cosine": "(prediction, target)",
    "swapped_prediction": "(scores, assignments, temperature=0.1)",
    "sinkhorn": "(scores, iterations=3, epsilon=0.05)",
    "contrastive": "(a, b, same, margin=1.0)",
    "triplet": "(anchor, positive, negative, margin=0.2)",
    "vicreg": "(a, b, invariance_weight=25.0, variance_weight=25.0, covariance_weight=1.0)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_by_place_have_these_names_and_defaults(name):
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    by_place = [p.replace(annotation=p.empty) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert str(inspect.Signature(by_place)) == SIGNATURES[name]


def nt_xent(lightly, a, b):
    return losses.nt_xent(a, b, 0.2), lightly.NTXentLoss(temperature=0.2)(a, b)


def barlow_twins(lightly, a, b):
    return losses.barlow_twins(a, b), lightly.BarlowTwinsLoss()(a, b)


def negative_cosine(lightly, a, b):
    return losses.negative_cosine(a, b), lightly.NegativeCosineSimilarity()(a, b)


def swapped_prediction(lightly, a, b):
    """Scores from -1 to 1, as SwAV's are; a third view as a local crop."""
    scores = torch.stack([torch.nn.functional.normalize(view, dim=1) for view in (a, b, a + b)])
    theirs = lightly.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    return losses.swapped_prediction(scores, losses.sinkhorn(scores[:2])), theirs([*scores[:2]], [*scores[2:]])


def vicreg(lightly, a, b):
    return losses.vicreg(a, b), lightly.VICRegLoss()(a, b)


def with_gradients(value, inputs):
    return value.squeeze(), *torch.autograd.grad(value, inputs, retain_graph=True)


@pytest.mark.parametrize("both", [nt_xent, barlow_twins, negative_cosine, swapped_prediction, vicreg])
def test_value_and_gradient_equal_lightly_s(both):
    lightly = pytest.importorskip("lightly.loss")
    torch.manual_seed(0)
    views = [torch.randn(8, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    ours, theirs = (with_gradients(value, views) for value in both(lightly, *views))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_value_and_gradient_equal_pytorch_metric_learning_s_nt_xent():
    loss = pytest.importorskip("pytorch_metric_learning.losses").NTXentLoss(temperature=0.2)
    torch.manual_seed(0)
    views = [torch.randn(8, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    ours, theirs = losses.nt_xent(*views, 0.2), loss(torch.cat(views), torch.arange(8).repeat(2))
    for mine, other in zip(with_gradients(ours, views), with_gradients(theirs, views), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


COLD = 0.01
SCORE = torch.arange(16) % 5
FINITE = {
    "info_nce": lambda a, b: losses.info_nce(a, b, COLD),
    "debiased_info_nce": lambda a, b: losses.debiased_info_nce(a, b, COLD, debias=0.1, hardness=1.0),
    "nt_xent": lambda a, b: losses.nt_xent(a, b, COLD),
    "dcl": lambda a, b: losses.nt_xent(a, b, COLD, decoupled=True),
    "queue_info_nce": lambda a, b: losses.queue_info_nce(a, b.detach(), -b.detach(), COLD),
    "sampled_softmax": lambda a, b: losses.sampled_softmax(a, b, -SCORE.float(), COLD),
    "sup_con": lambda a, b: losses.sup_con(torch.stack([a, b], dim=1), SCORE, COLD),
    "sigmoid": lambda a, b: losses.sigmoid(a, b, COLD, -10.0),
    "cosent": lambda a, b: losses.cosent(a, b, SCORE, COLD),
    "cosine_mse": lambda a, b: losses.cosine_mse(a, b, SCORE / 4),
    "distillation": lambda a, b: losses.distillation(a, b, b.detach(), -a.detach(), COLD, COLD),
    "contrastive": lambda a, b: losses.contrastive(a, b, SCORE > 2),
    "triplet": lambda a, b: losses.triplet(a, b, a.flip(0)),
    "mined_triplet": lambda a, b: losses.mined_triplet(torch.cat([a, b]), SCORE.repeat(2)),
    "barlow_twins": lambda a, b: losses.barlow_twins(a, b),
    "negative_cosine": lambda a, b: losses.negative_cosine(a, b),
    "swapped_prediction": lambda a, b: losses.swapped_prediction(
        torch.stack([a, b]), losses.sinkhorn(torch.stack([a, b]), epsilon=COLD), COLD
    ),
    "vicreg": lambda a, b: losses.vicreg(a, b),
    "dino": lambda a, b: losses.dino(torch.stack([a, b]), torch.stack([b, a]), torch.zeros(8), COLD, COLD),
    "centre_prediction": lambda a, b: losses.centre_prediction(torch.stack([a, b])),
    "sigreg": lambda a, b: losses.sigreg(torch.stack([a, b]), torch.eye(8)),
}
NO_LOSSES = {"batch_accuracy", "label_accuracy", "cross_correlation", "sinkhorn", "vicreg_terms", "matryoshka"}


def test_every_public_loss_is_tried():
    public = {name for name, value in vars(losses).items() if inspect.isfunction(value)}
    assert FINITE.keys() - {"dcl"} == public - NO_LOSSES


@pytest.mark.parametrize("b", ["equal", "opposite", "zero", "others"])
@pytest.mark.parametrize("name", FINITE)
def test_finite_for_bfloat16_at_the_smallest_temperature(name, b):
    """Also where both views are equal, opposite, or one has collapsed."""
    torch.manual_seed(0)
    a = torch.randn(16, 8).bfloat16().requires_grad_()
    views = {"equal": a, "opposite": -a, "zero": torch.zeros_like(a), "others": torch.randn(16, 8).bfloat16()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = FINITE[name](a, views[b])
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert torch.autograd.grad(loss, a)[0].isfinite().all()

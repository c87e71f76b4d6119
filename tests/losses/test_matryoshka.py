"""A loss at several dimensions is the sum that its equation says, whatever the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmcl.losses import cosent, info_nce, matryoshka, sigmoid


@pytest.mark.parametrize(
    "loss",
    [
        lambda v: info_nce(v["a"], v["b"], 0.1, ids=v["ids"]),
        lambda v: sigmoid(v["a"], v["b"], 0.1, -2.0, ids=v["ids"]),
        lambda v: cosent(v["a"], v["b"], v["ids"].float()),
    ],
)
def test_is_the_weighted_sum_over_the_cuts_of_any_loss(loss):
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 8, dtype=torch.float64).unbind()
    ids = torch.tensor([0, 1, 2, 2, 3, 4])
    got = matryoshka(loss, {"a": a, "b": b, "ids": ids}, ["a", "b"], [2, 5], [0.5, 3.0])
    cuts = [loss({"a": a[:, :m], "b": b[:, :m], "ids": ids}) for m in (8, 2, 5)]
    torch.testing.assert_close(got, cuts[0] + 0.5 * cuts[1] + 3.0 * cuts[2])


def test_equals_sentence_transformers_matryoshka_of_its_ranking_loss():
    """Theirs needs the full dimension among the dimensions; ours always includes it."""
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    torch.manual_seed(1)
    a, b = torch.randn(2, 6, 8).unbind()

    class Model(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["x"]}

        def get_embedding_dimension(self):
            return 8

    model = Model()
    inner = MultipleNegativesRankingLoss(model, similarity_fct=lambda x, y: F.normalize(x) @ F.normalize(y).T)
    theirs = MatryoshkaLoss(model, inner, [8, 4, 2], [1.0, 0.5, 0.25])([{"x": a}, {"x": b}], None)
    views = {"a": a, "b": b}
    ours = matryoshka(lambda v: info_nce(v["a"], v["b"], 0.05, symmetric=False), views, views, [4, 2], [0.5, 0.25])
    torch.testing.assert_close(ours, theirs)


def test_dimensions_that_cannot_be_cut_are_named():
    views = {"a": torch.randn(3, 4)}
    with pytest.raises(ValueError, match="a has 4 dimensions, of which 5"):
        matryoshka(lambda v: v["a"].sum(), views, ["a"], [5])
    with pytest.raises(ValueError, match="2 weights for 1"):
        matryoshka(lambda v: v["a"].sum(), views, ["a"], [2], [1.0, 1.0])

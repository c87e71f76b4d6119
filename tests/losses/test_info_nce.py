"""InfoNCE against the losses of open_clip and sentence-transformers, and the equation written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.losses import Blockwise, Guide, Negatives, cosent, debiased_info_nce, distillation, info_nce, sigmoid


def reference(q, k, tau, ids=None, negatives=None, negative_ids=None, symmetric=True, similarity="cosine", smooth=0.0):
    """The equation, one row at a time, in float64 numpy."""

    def sim(a, b):
        if similarity == "cosine":
            return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        return a @ b if similarity == "dot" else -np.linalg.norm(a - b)

    def direction(a, b, extra):
        total = 0.0
        for i in range(len(a)):
            terms = [
                math.exp(sim(a[i], b[j]) / tau)
                for j in range(len(b))
                if j == i or ids is None or not np.any(ids[i] == ids[j])
            ]
            terms += [
                math.exp(sim(a[i], extra[m]) / tau)
                for m in range(len(extra))
                if negative_ids is None or not np.any(ids[i] == negative_ids[m])
            ]
            total -= (1 - smooth) * math.log(math.exp(sim(a[i], b[i]) / tau) / sum(terms))
            total -= smooth / len(terms) * sum(math.log(term / sum(terms)) for term in terms)
        return total / len(a)

    forward = direction(q, k, [] if negatives is None else negatives)
    return (forward + direction(k, q, [])) / 2 if symmetric else forward


def test_value_and_gradients_equal_open_clip():
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    image, text = torch.randn(48, 32), torch.randn(48, 32)
    results = []
    for ours in (True, False):
        a, b = image.clone().requires_grad_(), text.clone().requires_grad_()
        scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
        if ours:
            loss = info_nce(a, b, (-scale).exp())
        else:
            loss = ClipLoss()(F.normalize(a, dim=1), F.normalize(b, dim=1), scale.exp())
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad, scale.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    m=st.integers(0, 5),
    d=st.integers(2, 7),
    columns=st.integers(0, 2),
    masked=st.booleans(),
    symmetric=st.booleans(),
    similarity=st.sampled_from(["cosine", "dot", "euclidean"]),
    smooth=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equation_in_float64(n, m, d, columns, masked, symmetric, similarity, smooth, seed):
    rng = np.random.default_rng(seed)
    q, k, extra = rng.normal(size=(n, d)), rng.normal(size=(n, d)), rng.normal(size=(m, d))
    ids = rng.integers(0, 4, size=(n, columns)) if columns else None
    negative_ids = rng.integers(0, 4, size=(m, columns)) if columns and m and masked else None
    expected = reference(q, k, 0.5, ids, extra if m else None, negative_ids, symmetric, similarity, smooth)

    def tensor(values):
        return None if values is None else torch.tensor(values[:, 0] if columns == 1 else values)

    got = info_nce(
        torch.tensor(q),
        torch.tensor(k),
        0.5,
        ids=tensor(ids),
        negatives=Negatives(torch.tensor(extra), tensor(negative_ids)) if m else None,
        symmetric=symmetric,
        similarity=similarity,
        label_smoothing=smooth,
    )
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def everything(q, k, tau, ids, key_ids, negatives, negative_ids, owner, weight, guide, symmetric):
    """As `reference`, with all rules about who is a candidate, and how much it counts."""

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    guide_q, guide_k, guide_n, margin = guide
    total = 0.0
    for i in range(len(q)):
        positive = math.exp(cosine(q[i], k[i]) / tau)
        limit = cosine(guide_q[i], guide_k[i]) - margin
        forward = backward = positive
        for j in set(range(len(q))) - {i}:
            if not np.any(ids[i] == key_ids[j]) and not cosine(guide_q[i], guide_k[j]) > limit:
                forward += math.exp(cosine(q[i], k[j]) / tau)
            if not np.any(key_ids[i] == ids[j]) and not cosine(guide_k[i], guide_q[j]) > limit:
                backward += math.exp(cosine(k[i], q[j]) / tau)
        for m in range(len(negatives)):
            if not np.any(ids[i] == negative_ids[m]) and not cosine(guide_q[i], guide_n[m]) > limit:
                forward += (weight if owner[m] == i else 1.0) * math.exp(cosine(q[i], negatives[m]) / tau)
        loss = -math.log(positive / forward)
        total += (loss - math.log(positive / backward)) / 2 if symmetric else loss
    return total / len(q)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 8),
    repeats=st.integers(1, 3),
    weight=st.sampled_from([0.25, 1.0, 3.0]),
    margin=st.sampled_from([-0.2, 0.0, 0.3]),
    symmetric=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_hard_negatives_identities_of_keys_and_guide_as_the_equation_says(n, repeats, weight, margin, symmetric, seed):
    rng = np.random.default_rng(seed)
    q, k, extra = rng.normal(size=(n, 5)), rng.normal(size=(n, 5)), rng.normal(size=(repeats * n, 5))
    ids, key_ids, negative_ids = (rng.integers(0, 30, size=(len(x), 3)) for x in (q, k, extra))
    owner = rng.permutation(np.tile(np.arange(n), repeats))
    by_guide = rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), rng.normal(size=(repeats * n, 4))
    expected = everything(q, k, 0.5, ids, key_ids, extra, negative_ids, owner, weight, (*by_guide, margin), symmetric)
    got = info_nce(
        torch.tensor(q),
        torch.tensor(k),
        0.5,
        ids=(torch.tensor(ids), torch.tensor(key_ids)),
        negatives=Negatives(*map(torch.tensor, (extra, negative_ids, owner)), weight),
        guide=Guide(*map(torch.tensor, by_guide), margin),
        symmetric=symmetric,
    )
    assert got.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_one_direction_equals_sentence_transformers_ranking_loss(columns):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.manual_seed(6)
    columns = torch.randn(columns, 16, 8).unbind()
    theirs = MultipleNegativesRankingLoss(None, scale=20.0).compute_loss_from_embeddings(list(columns), None)
    negatives = Negatives(torch.cat(columns[2:])) if columns[2:] else None
    torch.testing.assert_close(info_nce(*columns[:2], 0.05, negatives=negatives, symmetric=False), theirs)


def test_hard_negatives_count_as_in_simcse_s_code():
    """There a weight, the logarithm of the paper's α, is added to the logit of each row's own hard negative."""
    torch.manual_seed(7)
    n, weight, tau = 9, 0.7, 0.05
    anchor, positive, hard = torch.randn(3, n, 6, dtype=torch.float64).unbind()
    cosines = [F.cosine_similarity(anchor[:, None], keys[None], dim=-1) / tau for keys in (positive, hard)]
    logits = torch.cat([cosines[0], cosines[1] + weight * torch.eye(n)], dim=1)
    expected = F.cross_entropy(logits, torch.arange(n))
    negatives = Negatives(hard, owner=torch.arange(n), weight=math.exp(weight))
    torch.testing.assert_close(info_nce(anchor, positive, tau, negatives=negatives, symmetric=False), expected)


@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("hard", [False, True])
def test_guide_masks_what_sentence_transformers_gist_masks(hard, margin):
    """Theirs also compares anchors with anchors and positives with positives, which can be turned off."""
    from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss

    theirs = GISTEmbedLoss.__new__(GISTEmbedLoss)  # past the check that the models have tokenizers
    torch.nn.Module.__init__(theirs)
    theirs.model = lambda features: {"sentence_embedding": features["model"]}
    theirs.guide = lambda features: {"sentence_embedding": features["guide"]}
    settings = {"temperature": 0.1, "margin": margin, "margin_strategy": "absolute", "must_retokenize": False}
    settings |= {"contrast_anchors": False, "contrast_positives": False, "gather_across_devices": False}
    settings |= {"similarity_fct": torch.nn.CosineSimilarity(-1), "cross_entropy_loss": torch.nn.CrossEntropyLoss()}
    vars(theirs).update(settings)
    torch.manual_seed(8)
    by_guide = torch.randn(3, 12, 3).unbind()[: 3 if hard else 2]  # in few dimensions many are close
    vectors = torch.randn(3, 12, 6).unbind()[: 3 if hard else 2]
    expected = theirs([{"model": x, "guide": y} for x, y in zip(vectors, by_guide, strict=True)], None)
    guide = Guide(by_guide[0], by_guide[1], by_guide[2] if hard else None, margin)
    options = {"negatives": Negatives(vectors[2])} if hard else {}
    got = info_nce(vectors[0], vectors[1], 0.1, guide=guide, symmetric=False, **options)
    torch.testing.assert_close(got, expected)
    assert abs(got - info_nce(vectors[0], vectors[1], 0.1, symmetric=False, **options)) > 0.05


def test_crossed_identities_keep_apart_all_that_shares_a_text():
    torch.manual_seed(9)
    a, p, n = torch.tensor([0, 1, 2, 0]), torch.tensor([5, 0, 6, 7]), torch.tensor([5, 8, 9, 1])
    anchor, positive, hard = torch.randn(3, 4, 6, dtype=torch.float64).unbind()
    s, t = (F.cosine_similarity(anchor[:, None], keys[None], dim=-1).div(0.1).exp() for keys in (positive, hard))
    # Row 0 shares its anchor with row 3, and it is the positive of row 1; its positive is its own hard negative.
    # Row 1 has as its positive the anchors of rows 0 and 3; and its anchor is the hard negative of row 3.
    sums = [
        s[0, 0] + s[0, 2] + t[0, 1] + t[0, 2] + t[0, 3],
        s[1, 1] + s[1, 2] + t[1, 0] + t[1, 1] + t[1, 2],
        s[2].sum() + t[2].sum(),
        s[3, 2] + s[3, 3] + t[3].sum(),
    ]
    expected = -(s.diagonal() / torch.stack(sums)).log().mean()
    got = info_nce(
        anchor,
        positive,
        0.1,
        ids=(torch.stack([a, a, p, p], 1), torch.stack([a, p, a, p], 1)),
        negatives=Negatives(hard, n[:, None].expand(-1, 4)),
        symmetric=False,
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("smooth", [0.0, 0.2])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_gradients_of_every_argument_in_float64(similarity, smooth):
    torch.manual_seed(1)
    q, k, extra = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 0, 2, 1])

    def loss(q, k, extra, tau):
        negatives = Negatives(extra)
        return info_nce(q, k, tau, ids=ids, negatives=negatives, similarity=similarity, label_smoothing=smooth)

    assert torch.autograd.gradcheck(loss, (q, k, extra, tau))


def test_label_smoothing_is_that_of_torch_where_nothing_is_masked():
    torch.manual_seed(5)
    q, k, extra = torch.randn(12, 8), torch.randn(12, 8), torch.randn(5, 8)
    logits = F.normalize(q, dim=1) @ F.normalize(torch.cat([k, extra]), dim=1).T / 0.07
    diagonal = torch.arange(12)
    forward = F.cross_entropy(logits, diagonal, label_smoothing=0.1)
    backward = F.cross_entropy(logits[:, :12].T, diagonal, label_smoothing=0.1)
    got = info_nce(q, k, 0.07, negatives=Negatives(extra), label_smoothing=0.1)
    torch.testing.assert_close(got, (forward + backward) / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_smallest_temperature_and_accumulated_in_float32(dtype):
    torch.manual_seed(2)
    q = torch.randn(64, 16).to(dtype).requires_grad_()
    loss = info_nce(q, -q.detach(), 0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert loss > 90
    assert torch.isfinite(q.grad).all()


def test_autocast_does_not_lower_the_precision_of_the_loss():
    torch.manual_seed(3)
    q, k = torch.randn(32, 64), torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(q, k, 0.01)
    assert inside.item() == info_nce(q, k, 0.01).item()


def test_a_batch_of_one_thing_has_no_negatives_and_no_loss():
    q, k = torch.randn(6, 3), torch.randn(6, 3)
    assert info_nce(q, k, ids=torch.zeros(6, dtype=torch.long)).item() == 0.0


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        info_nce(torch.randn(3, 4), torch.randn(4, 4))
    with pytest.raises(ValueError, match="ids must be"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), ids=torch.zeros(2))
    with pytest.raises(ValueError, match="negatives must be"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), negatives=Negatives(torch.randn(2, 5)))
    with pytest.raises(ValueError, match="go with ids"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), negatives=Negatives(torch.randn(2, 4), torch.zeros(2)))
    three = torch.randn(3, 4)
    for wrong, message in [
        ({"ids": (torch.zeros(3), torch.zeros(3, 2))}, "must have the same shape"),
        ({"ids": (torch.zeros(3), torch.zeros(4))}, "ids of keys must be"),
        ({"negatives": Negatives(three, owner=torch.zeros(2))}, "one row number for each"),
        ({"negatives": Negatives(three, weight=0.0)}, "negatives.weight must be"),
        ({"negatives": Negatives(three, weight=math.inf)}, "must be more than 0 and finite"),
        ({"negatives": Negatives(three, owner=torch.zeros(3))}, "owner must be int64"),
        ({"guide": Guide(three[:2], three[:2])}, "the guide embeds 2 rows of 3"),
        ({"guide": Guide(three, three, three)}, "guide.negatives go with negatives"),
    ]:
        with pytest.raises(ValueError, match=message):
            info_nce(three, three, **wrong)
    with pytest.raises(ValueError, match="label_smoothing must be"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), label_smoothing=1.0)
    with pytest.raises(ValueError, match="similarity must be"):
        info_nce(torch.randn(3, 4), torch.randn(3, 4), similarity="manhattan")


@pytest.mark.parametrize("tile", [None, 2])
def test_a_temperature_of_another_type_changes_none_of_the_results(tile):
    q, k = torch.randn(5, 4), torch.randn(5, 4)
    for shape in ((), (1,)):
        t = torch.full(shape, 0.1, dtype=torch.float64)
        where = {"blockwise": Blockwise(tile)}
        tiled = info_nce(q, k, t, **where), sigmoid(q, k, t, -t, **where)
        dense = debiased_info_nce(q, k, t, debias=0.1), cosent(q, k, torch.rand(5), t), distillation(q, k, q, k, t, t)
        for value in (*tiled, *dense):
            assert value.dtype == torch.float32
            assert value.shape == ()

"""Which items become hard negatives, against plain loops in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import sparse

from mmcl.retrieval import Index
from mmcl.retrieval.mining import GuideVectors, KnownPositives, Rules, filled_up, mine, nearest_others, pick


def unit(rng, *shape):
    vectors = rng.normal(size=shape).astype("float32")
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def problem():
    """40 anchors, 60 items: some of them each anchor's own, in numbers from 1 to 6; and what a guide makes of them."""
    rng = np.random.default_rng(0)
    own = rng.random((40, 60)) < rng.uniform(0.0, 0.08, (40, 1))
    own[np.arange(40), rng.integers(0, 60, 40)] = True
    anchors, corpus = unit(rng, 40, 8), unit(rng, 60, 8)
    positive = rng.uniform(-0.2, 0.8, 40).astype("float32")
    guide = GuideVectors(unit(rng, 40, 5), unit(rng, 60, 5), rng.uniform(0.0, 0.9, 40).astype("float32"))
    return own, anchors, corpus, positive, guide


def plain(problem, row, rules, guided):
    """(item, rank) of everything that may be taken for a row, best first, by the words of the rules."""
    own, anchors, corpus, positive, guide = problem
    scores = corpus.astype("float64") @ anchors[row].astype("float64")
    others = [item for item in np.argsort(-scores) if not own[row, item]][: rules.depth]
    found = []
    for rank, item in enumerate(others):
        if rank < rules.skip:
            continue
        score, of_positive = scores[item], float(positive[row])
        if rules.choice == "semi_hard" and score >= of_positive:
            continue
        if rules.margin is not None and score >= of_positive - rules.margin:
            continue
        if (
            rules.relative_margin is not None
            and of_positive >= 0
            and score >= (1 - rules.relative_margin) * of_positive
        ):
            continue
        if rules.relative_margin is not None and of_positive < 0 and score >= (1 + rules.relative_margin) * of_positive:
            continue
        if rules.max_score is not None and score > rules.max_score:
            continue
        if guided and guide.corpus[item] @ guide.anchors[row] > guide.positive[row]:
            continue
        found.append((item, rank))
    return found


def mined(problem, rules, guided=False, seed=0):
    own, anchors, corpus, positive, guide = problem
    seeds = np.arange(len(anchors)) * 7919 + seed
    index = Index.build(corpus, show_progress=False)
    own = sparse.csr_array(own.astype(np.int32))
    return mine(index, corpus, anchors, positive, own, rules, seeds, guide if guided else None)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "rules",
    [
        Rules(count=3, depth=10),
        Rules(count=3, depth=12, skip=4),
        Rules(count=4, depth=60, choice="semi_hard"),
        Rules(count=2, depth=20, margin=0.1),
        Rules(count=2, depth=60, relative_margin=0.3),
        Rules(count=5, depth=8, max_score=0.3),
        Rules(count=3, depth=60, choice="semi_hard", margin=0.05, relative_margin=0.1, max_score=0.6),
        Rules(count=60, depth=60),
    ],
    ids=lambda rules: "-".join(f"{k}={v}" for k, v in vars(rules).items() if v is not None),
)
def test_the_first_that_pass_are_taken_and_random_others_fill_up(problem, rules, guided):
    own, anchors, corpus, _, _ = problem
    if rules.count == 60:
        rules = Rules(count=60 - int(own.sum(1).max()), depth=60)
    found = mined(problem, rules, guided)
    scores = anchors.astype("float64") @ corpus.T.astype("float64")
    filled = 0
    for row in range(len(anchors)):
        expected = plain(problem, row, rules, guided)[: rules.count]
        passed = len(expected)
        filled += rules.count - passed
        assert list(zip(found.items[row], found.ranks[row], strict=True))[:passed] == expected
        assert (found.ranks[row, passed:] == -1).all()
        assert len(set(found.items[row])) == rules.count
        assert not own[row, found.items[row]].any()
        np.testing.assert_allclose(found.scores[row], scores[row, found.items[row]], atol=1e-5)
    if rules.depth <= 20 and (rules.max_score or rules.margin):
        assert filled > 0


def test_random_ones_are_drawn_from_all_that_pass_by_the_seed_alone(problem):
    rules = Rules(count=3, depth=12, choice="random", max_score=0.6)
    once, again = mined(problem, rules), mined(problem, rules)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    mined_of = [set() for _ in range(40)]
    for seed in range(100):
        found = mined(problem, rules, seed=seed)
        for row in range(40):
            ranks = found.ranks[row][found.ranks[row] >= 0]
            assert (np.diff(ranks) > 0).all()
            mined_of[row] |= set(found.items[row][: len(ranks)])
    assert mined_of == [{item for item, _ in plain(problem, row, rules, False)} for row in range(40)]


def test_an_anchor_that_owns_much_is_searched_deeper(problem):
    own, anchors, corpus, _, _ = problem
    own = own.copy()
    own[0, :55] = True  # more than the depth
    search = partial(Index.build(corpus, show_progress=False).search, anchors)
    items, scores = nearest_others(search, 4, sparse.csr_array(own.astype(np.int32)))
    for row in range(40):
        exact = corpus.astype("float64") @ anchors[row].astype("float64")
        expected = [item for item in np.argsort(-exact) if not own[row, item]][:4]
        assert items[row].tolist() == expected
    assert scores.dtype == np.float32


def test_fewer_others_than_the_depth_leave_places_empty(problem):
    _, anchors, corpus, _, _ = problem
    own = np.ones((40, 60), dtype=np.int32)
    own[:, 7] = 0
    search = partial(Index.build(corpus, show_progress=False).search, anchors)
    _, scores = nearest_others(search, 80, sparse.csr_array(own))
    assert scores.shape == (40, 80)
    assert (np.isfinite(scores).sum(axis=1) == 1).all()


def test_an_approximate_index_that_finds_too_few_is_no_harm(problem):
    own, anchors, corpus, positive, _ = problem
    index = Index.build(corpus, spec="HNSW2", show_progress=False)
    sparse_own = sparse.csr_array(own.astype(np.int32))
    found = mine(index, corpus, anchors, positive, sparse_own, Rules(count=20, depth=50), np.arange(40))
    assert not np.take_along_axis(own, found.items, axis=1).any()
    assert all(len(set(items)) == 20 for items in found.items)


def test_pick_takes_places_in_order():
    passes = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
    assert pick(passes, 2).tolist() == [[1, 2], [4, -1], [-1, -1]]
    draws = np.array([[0.0, 0.9, 0.5, 0.1, 0.2]] * 3)
    assert pick(passes, 2, draws).tolist() == [[2, 4], [4, -1], [-1, -1]]


def test_filling_up_reaches_every_item_that_is_left_and_none_else():
    own = np.zeros((1, 12), dtype=np.int32)
    own[0, [0, 1, 5, 11]] = 1
    items = np.array([[7, -1, -1]])
    drawn = [filled_up(items, sparse.csr_array(own), np.array([seed]))[0] for seed in range(-100, 100)]
    assert {int(row[0]) for row in drawn} == {7}
    assert all(len(set(row.tolist())) == 3 for row in drawn)
    assert set(np.concatenate([row[1:] for row in drawn]).tolist()) == {2, 3, 4, 6, 8, 9, 10}


def test_own_is_what_shares_a_thing_with_the_row_or_is_paired_with_such():
    """Rows of a few things, so that all cases meet: equal anchors, texts on both sides, several anchors in a row."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        count = int(rng.integers(1, 12))
        anchors = [rng.integers(0, 9, rng.integers(1, 3)) for _ in range(count)]
        positives = [rng.integers(0, 9, rng.integers(1, 4)) for _ in range(count)]
        corpus = np.unique(np.concatenate(positives))
        pairs = [
            (np.repeat(np.arange(count), [len(of) for of in side]), np.concatenate(side))
            for side in (anchors, positives)
        ]
        own = KnownPositives(pairs[0], pairs[1], corpus, count)
        rows = rng.integers(0, count, 20)
        found = own.of(rows).toarray() != 0
        for place, row in enumerate(rows):
            mine = {*anchors[row].tolist(), *positives[row].tolist()}
            expected = mine.copy()
            for other in range(count):
                if mine & set(anchors[other].tolist()):
                    expected |= set(positives[other].tolist())
            assert set(corpus[found[place]].tolist()) == expected & set(corpus.tolist())
        assert ((own.partners.toarray() != 0).sum(1) == [len(set(of.tolist())) for of in positives]).all()


def test_of_several_positives_the_least_similar_counts():
    rng = np.random.default_rng(1)
    corpus, anchors = unit(rng, 5, 4), unit(rng, 3, 4)
    own = KnownPositives(
        (np.arange(3), np.array([100, 101, 102])), (np.array([0, 0, 1, 2]), np.arange(4)), np.arange(5), 3
    )
    rows = np.array([2, 0])
    scores = corpus @ anchors.T
    expected = [scores[3, 2], min(scores[0, 0], scores[1, 0])]
    np.testing.assert_allclose(own.similarity(rows, anchors[rows], corpus), expected, atol=1e-6)

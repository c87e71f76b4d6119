"""Mining and pairs by an index: what exact search finds, where the index finds it, with cosines that are exact."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl.data.near_copies import normalised
from mmcl.data.sources import open_source
from mmcl.retrieval import Index
from mmcl.retrieval.faiss import specs
from mmcl.retrieval.mining import Rules, search_by_index
from mmcl.retrieval.similar.items import Side
from mmcl.retrieval.similar.negatives import Options, Pairs, mine_negatives
from mmcl.retrieval.similar.pairs import UnitVectors, similar_pairs, similar_pairs_by_index
from mmcl.retrieval.similar.paraphrases import best_pairs, best_pairs_by_index, mine_paraphrases

from .conftest import TEXTS


@pytest.fixture
def coarse(monkeypatch):
    """Indexes are approximate, and hold codes of 4 bits a component, whatever the number of vectors."""
    monkeypatch.setattr(specs, "choose_spec", lambda *_: ("IVF4,SQ4", "as the test says"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Pairs of which anchors are positives elsewhere, written in other ways, and some anchors come twice."""
    spelled = [TEXTS[0].upper(), f"{TEXTS[1]}!", TEXTS[2].title()]
    pairs = [
        *zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True),
        (TEXTS[5], TEXTS[30]),
        *zip(spelled, spelled, strict=True),
    ]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"anchor": one, "positive": other}) + "\n" for one, other in pairs))
    return open_source(path)


def mined(encoder, rows, path, **options):
    pairs = Pairs(rows, Side("anchor"), Side("positive"))
    report = mine_negatives(encoder, pairs, path, Rules(8, depth=40), options=Options(**options))
    return report, [json.loads(line) for line in path.read_text().splitlines()]


def negatives(line):
    return [value for name, value in line.items() if name.startswith("negative") and not name.endswith("score")]


def test_an_index_that_is_exact_gives_the_same_negatives(encoder, rows, tmp_path):
    expected, lines = mined(encoder, rows, tmp_path / "exact.jsonl")
    found, others = mined(encoder, rows, tmp_path / "index.jsonl", by_index=True)
    assert expected.negatives == found.negatives > 0
    assert expected.refused == found.refused
    for line, other in zip(lines, others, strict=True):
        assert negatives(line) == negatives(other)
        np.testing.assert_allclose(line["negative_score"], other["negative_score"], atol=1e-6)


@pytest.mark.usefixtures("coarse")
def test_an_index_that_misses_some_never_gives_a_positive_or_a_duplicate(encoder, rows, tmp_path):
    _, lines = mined(encoder, rows, tmp_path / "index.jsonl", by_index=True, duplicate_score=0.98)
    partners, count = {}, 0
    for line in lines:
        partners.setdefault(normalised(line["anchor"]), set()).add(normalised(line["positive"]))
    for line in lines:
        texts = [text for text in negatives(line) if text is not None]
        own = {normalised(line["anchor"]), normalised(line["positive"])}
        count += len(texts)
        assert not {normalised(text) for text in texts} & (own | partners[normalised(line["anchor"])])
        vectors = encoder.encode([line["anchor"], line["positive"], *texts])
        scores = [value for name, value in line.items() if name.startswith("negative") and name.endswith("score")]
        np.testing.assert_allclose(scores[: len(texts)], vectors[2:] @ vectors[0], atol=1e-5)
        assert (vectors[2:] @ vectors[:2].T < 0.98 + 1e-5).all()
    assert count > 2 * len(lines)


@pytest.mark.usefixtures("coarse")
def test_scores_are_products_of_the_vectors_rather_than_of_codes(clustered):
    unit = clustered / np.linalg.norm(clustered, axis=1, keepdims=True)
    index = Index.build(unit, show_progress=False)
    items, scores = search_by_index(index, unit, unit[:20], 30)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", unit[:20], unit[items]), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert np.abs(index.search(unit[:20], 30)[1] - scores).max() > 1e-3
    exact = {(i, j): score for part in similar_pairs(UnitVectors(unit), 0.9) for i, j, score in zip(*part, strict=True)}
    found = {
        (i, j): score
        for part in similar_pairs_by_index(UnitVectors(unit), 0.9, show_progress=False)
        for i, j, score in zip(*part, strict=True)
    }
    assert set(found) <= set(exact)
    assert len(found) > 0.9 * len(exact)
    for pair, score in found.items():
        assert score == pytest.approx(exact[pair], abs=1e-6)


@pytest.mark.parametrize("count", [10, 500, 100_000])
def test_the_best_pairs_are_those_of_all_products(clustered, count):
    vectors = UnitVectors(clustered)
    expected, found = best_pairs(vectors, count), best_pairs_by_index(vectors, count, show_progress=False)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    sure = expected.scores > expected.scores[-1] + 1e-5
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(pairs) == len(found.first) == len(expected.first)
    assert set(zip(expected.first[sure].tolist(), expected.second[sure].tolist(), strict=True)) <= pairs
    assert (found.first < found.second).all()


def test_paraphrases_by_index_are_those_by_all_products(encoder, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    source = open_source(tmp_path / "texts.txt")
    for name, by_index in (("exact", False), ("index", True)):
        mine_paraphrases(encoder, source, Side("text"), tmp_path / f"{name}.jsonl", 20, by_index=by_index)
    expected, found = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("exact", "index")
    )
    scores = [line["score"] for line in expected]
    np.testing.assert_allclose([line["score"] for line in found], scores, atol=1e-6)
    named = [(line["anchor"], line["positive"]) for line in found]
    for line in expected:
        assert (line["anchor"], line["positive"]) in named or line["score"] < scores[-1] + 1e-5

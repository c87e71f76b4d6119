"""Search in Python: what is searched by, with what, and that it is what the evaluation measures."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mmcl
from mmcl.data.sources import open_source
from mmcl.data.sources.beir import Beir
from mmcl.encoding import Columns, encode_source, open_vectors
from mmcl.evaluation import beir_retrieval
from mmcl.evaluation.rankings import judge_hybrid
from mmcl.retrieval import Fusion, Index, LexicalIndex, Like, Searcher
from mmcl.retrieval.search import add_words
from mmcl.runtime.errors import MmclError

TEXTS = ["a red dog", "a blue car", "a green tree", "the red car", "two dogs and a tree", "a boat"]
IDS = list("abcdef")
PROMPTS = {"query": "find ", "passage": "text: "}
COLUMNS = {"colour": ["red", "blue", "green", "red", None, None], "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def both(tiny):
    return tiny("image", "text")


@pytest.fixture(scope="module")
def searcher(both):
    index = Index.build(both.encode(TEXTS), IDS, labels=TEXTS, columns=COLUMNS)
    return Searcher(index, both, lexical=LexicalIndex.build(TEXTS, IDS))


def best(searcher, vector, k=6):
    return searcher.index.search(vector, k)[0][0].tolist()


def names(results):
    return [result.id for result in results]


def test_words_images_and_lists_of_them(searcher, both, photo):
    pixels = np.asarray(Image.open(photo))
    as_image = best(searcher, both.encode(photo))
    assert names(searcher.search("a red dog", 6)) == best(searcher, both.encode("a red dog"))
    for image in (photo, pixels, Image.open(photo)):
        assert names(searcher.search(image, 6)) == as_image
    found = searcher.search(["a red dog", photo], 6)
    assert [names(results) for results in found] == [best(searcher, both.encode("a red dog")), as_image]
    assert searcher.search([], 3) == []


def test_a_result_says_what_the_index_knows(searcher, both):
    (first, *_) = searcher.search("a red dog", 6)
    assert (first.rank, first.id, first.label) == (1, "a", "a red dog")
    assert first.columns == {"colour": "red", "price": 1.0}
    assert first.score == pytest.approx(1, abs=1e-5)
    assert json.loads(json.dumps(first.to_dict()))["columns"] == first.columns


def test_a_result_of_an_id_with_several_vectors_is_of_the_one_that_was_found(both):
    texts = ["a red dog", "a blue car", "a green tree", "the red car"]
    spans = {"start": [0, 10, 0, 12], "end": [9, 20, 12, 23]}
    index = Index.build(both.encode(texts), ["one", "one", "two", "two"], labels=texts, columns=spans)
    searcher = Searcher(index, both, lexical=LexicalIndex.build(texts, ["one", "one", "two", "two"]))
    for place, text in enumerate(texts):
        for options in ({}, {"hybrid": Fusion((1, 0))}):
            best = searcher.search(text, 4, **options)[0]
            assert (best.label, best.columns) == (text, {"start": spans["start"][place], "end": spans["end"][place]})
    assert sorted(result.label for result in searcher.search("a boat", 4)) == sorted(texts)
    assert names(searcher.search("a boat", 4, hybrid=True)) in (["one", "two"], ["two", "one"])


def test_more_like_a_thing_of_the_index_leaves_it_out(searcher):
    vectors = searcher.index.vectors(IDS)
    order = np.argsort(-(unit(vectors) @ unit(vectors[2])))
    assert names(searcher.search(Like("c"), 5)) == [IDS[row] for row in order if IDS[row] != "c"]
    numbered = Searcher(Index.build(vectors, [10, 11, 12, 12, 12, 13]), searcher.encoder)
    assert names(numbered.search(Like("12"), 3)) == names(numbered.search(Like(12), 3))
    assert set(names(numbered.search(Like(12), 3))) == {10, 11, 13}  # none of its three vectors


def test_a_mix_is_the_weighted_sum_of_unit_vectors(searcher, both, photo):
    mix = [("a red dog", 1.0), (photo, 0.5), (Like("b"), 0.3), ("a boat", -0.4)]
    parts = np.stack(
        [both.encode("a red dog"), both.encode(photo), searcher.index.vectors(["b"])[0], both.encode("a boat")]
    )
    expected = unit(np.array([1.0, 0.5, 0.3, -0.4]) @ unit(parts.astype(np.float64)))
    np.testing.assert_allclose(searcher.embed([mix])[0], expected, atol=1e-5)
    order = [IDS[row] for row in np.argsort(-(unit(searcher.index.vectors(IDS)) @ expected))]
    assert names(searcher.search(mix, 5)) == [name for name in order if name != "b"]
    assert [names(found) for found in searcher.search([mix, "a boat"], 2)][1] == names(searcher.search("a boat", 2))


def test_conditions_on_columns(searcher):
    assert set(names(searcher.search("a dog", 6, where="price > 2 and colour = 'red'"))) == {"d"}
    assert names(searcher.search(Like("d"), 6, where="colour = 'red'")) == ["a"]
    hybrid = searcher.search("red dog tree", 6, where="price >= 3", hybrid=True)
    assert set(names(hybrid)) == {"c", "d", "e", "f"}


def test_words_find_a_thing_of_which_any_vector_fulfils_the_condition(both):
    texts = ["a red dog", "a blue car", "two dogs and a tree", "a boat"]
    parts = {"page": [1, 2, 1, 2], "language": ["en", "de", "en", "en"]}
    ids = ["one", "one", "two", "two"]
    index = Index.build(both.encode(texts), ids, labels=texts, columns=parts)
    searcher = Searcher(index, both, lexical=LexicalIndex.build(texts, ids))
    by_words = Fusion((0, 1), depth=1)  # the vector found is of one thing, and words find the other one, too
    for where, expected in {
        "language = 'de'": {"one": {"page": 2, "language": "de"}},
        "page = 2": {"one": {"page": 2, "language": "de"}, "two": {"page": 2, "language": "en"}},
        "page = 1": {"one": {"page": 1, "language": "en"}, "two": {"page": 1, "language": "en"}},
        "page = 2 and language = 'en'": {"two": {"page": 2, "language": "en"}},
        "page > 2": {},
    }.items():
        for query in texts:
            words = searcher.rankings([query], 4, where=where)[1].ids[0].tolist()
            assert set(words) - {None} == set(expected) & set(searcher.lexical.search([query], 4).ids[0].tolist())
            for hybrid in (by_words, True):
                for found in searcher.search(query, 2, where=where, hybrid=hybrid):
                    assert found.columns == expected[found.id]


def test_hybrid_search_fuses_vectors_and_words(searcher, both, caplog):
    lexical = searcher.lexical
    vectors, words = searcher.rankings(["dog tree"], 6)
    assert vectors.ids[0].tolist() == best(searcher, both.encode("dog tree"))
    assert words.ids.tolist() == lexical.search(["dog tree"], 6).ids.tolist()
    points = {
        name: sum(
            1 / (60 + rank)
            for row in (vectors.ids[0], words.ids[0])
            for rank, other in enumerate(row, 1)
            if other == name
        )
        for name in IDS
    }
    found = searcher.search("dog tree", 6, hybrid=True)
    assert [result.score for result in found] == pytest.approx(sorted(points.values(), reverse=True))
    only_words = searcher.search("dog tree", 3, hybrid=Fusion((0.0, 1.0)))
    assert names(only_words)[0] == words.ids[0, 0] == "e"
    assert set(names(only_words)) == {"a", "c", "e"}  # of which two have one word each
    mixed = searcher.search([("tree", 1.0), ("dog", -0.5)], 1, hybrid=Fusion((0.0, 1.0)))
    assert names(mixed) == ["c"]
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        assert names(searcher.search(Like("a"), 3, hybrid=True)) == names(searcher.search(Like("a"), 3))
    assert "1 of 1 queries have no words" in caplog.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """A model with prompts, and an index of texts by it as the command line makes it."""
    folder = tmp_path_factory.mktemp("prompted")
    tiny("text", prompts=PROMPTS).save(folder / "model")
    pq.write_table(pa.table({"id": IDS, "text": TEXTS}), folder / "texts.parquet")
    source = open_source(folder / "texts.parquet")
    encode_source(mmcl.load(folder / "model", dtype="float32"), source, Columns("text"), folder / "vectors")
    Index.build(open_vectors(folder / "vectors")).save(folder / "index")
    return folder


def beir():
    queries = {"q1": "red dog", "q2": "blue car", "q3": "tree"}
    qrels = {"q1": {"a": 2, "d": 1}, "q2": {"b": 1}, "q3": {"c": 1, "e": 1}}
    return Beir("small", dict(zip(IDS, TEXTS, strict=True)), queries, qrels)


class Recording:
    """Passes on to an encoder, and keeps what it is asked and answers."""

    def __init__(self, encoder):
        self.encoder, self.asked = encoder, {}

    @property
    def prompts(self):
        return self.encoder.prompts

    def encode(self, inputs, **options):
        vectors = self.encoder.encode(inputs, **options)
        self.asked |= {text: (options.get("prompt"), vector) for text, vector in zip(inputs, vectors, strict=True)}
        return vectors


def test_queries_and_documents_are_embedded_as_the_evaluation_does(folder):
    searcher = Searcher(folder / "index", dtype="float32")
    assert PROMPTS["query"] == searcher.encoder.prompts[searcher.prompt]
    recording, task = Recording(searcher.encoder), beir()
    beir_retrieval(recording, task, bootstrap=0)
    for text in task.queries.values():
        prompt, vector = recording.asked[text]
        assert prompt == searcher.prompt == "query"
        np.testing.assert_allclose(searcher.embed([text])[0], vector, atol=1e-6)
    measured = np.stack([recording.asked[text][1] for text in TEXTS])
    np.testing.assert_allclose(searcher.index.vectors(IDS), measured, atol=1e-6)


def test_a_search_scores_what_the_evaluation_of_the_model_says(folder):
    searcher, task = Searcher(folder / "index", dtype="float32"), beir()
    searcher_with_words = Searcher(searcher.index, searcher.encoder, lexical=LexicalIndex.build(TEXTS, IDS))
    found = judge_hybrid(searcher_with_words, task, (1, 3), metric="ndcg@3", folds=3, bootstrap=0)
    measured = beir_retrieval(searcher.encoder, task, (1, 3), bootstrap=0)
    for name, value in measured.metrics.items():
        assert found.scores["vectors"].metrics[name] == pytest.approx(value), name
    assert set(found.scores) == {"vectors", "words", "rrf", "learned"}
    assert found.fusion.learned["queries"] == 3


def test_texts_behind_another_prompt_than_measured_are_said(folder, tmp_path, caplog):
    encoder = mmcl.load(folder / "model", dtype="float32")
    source = open_source(folder / "texts.parquet")
    stored = encode_source(encoder, source, Columns("text"), tmp_path / "vectors", prompt="")
    Index.build(stored).save(tmp_path / "index")
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        Searcher(tmp_path / "index")
    assert "encoded behind ''" in caplog.text
    assert "--prompt passage" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        Searcher(folder / "index")
    assert not caplog.records


def test_a_prompt_of_the_documents_that_the_model_has_no_more_is_refused(folder, tiny):
    changed = tiny("text", prompts={"query": "find ", "passage": "other: "})
    with pytest.raises(MmclError, match="'text: ', which is no prompt"):
        Searcher(Index.load(folder / "index"), changed)


def test_among_images_the_default_prompt_is_used_as_the_evaluation_does(photo, tiny):
    encoder = tiny("image", "text", prompts=PROMPTS)
    index = Index.build(encoder.encode([photo]), ["x"])
    assert Searcher(index, encoder).prompt is None


def test_words_lie_beside_the_index_and_learned_weights_beside_them(folder):
    with pytest.raises(MmclError, match=r"no words beside its vectors.*mmcl index lexical"):
        Searcher(folder / "index").search("red", hybrid=True)
    add_words(folder / "index", TEXTS, IDS, source="texts.parquet")
    searcher = Searcher(folder / "index")
    words = searcher.rankings(["dogs"], 3)[1]
    assert words.ids.tolist() == [["a", "e", None]]
    searcher.keep_fusion(Fusion((0.0, 1.0)))
    again = Searcher(folder / "index")
    assert names(again.search("dogs", 2, hybrid=True)) == ["a", "e"]
    with pytest.raises(MmclError, match="knows none of 6 ids"):
        add_words(folder / "index", TEXTS, list("uvwxyz"))
    description = folder / "index" / "index.json"
    kept = description.read_text()
    description.write_text(kept + "\n")
    with pytest.raises(MmclError, match=r"has changed since its words were added from texts\.parquet"):
        Searcher(folder / "index").search("red", hybrid=True)
    description.write_text(kept)


def test_texts_of_ids_that_the_index_lacks_are_left_out_and_counted(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        lexical = add_words(folder / "index", [*TEXTS, "a dog without a vector", None], [*IDS, "x", "y"])
    assert "2 of 8 texts left out" in caplog.text
    assert len(lexical) == 6


def test_only_what_matches_by_the_threshold_that_was_measured(folder):
    searcher = Searcher(folder / "index")
    scores = [result.score for result in searcher.search("a red dog", 6)]
    with pytest.raises(MmclError, match="no match threshold is kept"):
        searcher.search("a red dog", match=True)
    cut = (scores[1] + scores[2]) / 2
    cuts = [
        {"asked": asked, "threshold": at, "reason": None, "precision": 1, "recall": 1, "intervals": {}}
        for asked, at in ((None, cut), (0.9, 2.0))
    ]
    measured = {"cuts": cuts, "calibration": None, "encoder": searcher.encoder.fingerprint()}
    path = folder / "model" / "threshold.json"
    path.write_text(json.dumps({"format_version": 1, "mmcl_version": "0", "thresholds": {"text-text": measured}}))
    assert [result.score for result in searcher.search("a red dog", 6, match=True)] == scores[:2]
    assert searcher.search(["a red dog", Like("a")], 6, match=0.9) == [[], []]
    with pytest.raises(MmclError, match=r"precision 0\.5 was not measured"):
        searcher.search("a red dog", match=0.5)
    with pytest.raises(MmclError, match="a mix matches nothing"):
        searcher.search([("a red dog", 1.0), ("a boat", 0.5)], match=True)
    with pytest.raises(MmclError, match="cosine"):
        searcher.search("a red dog", match=True, hybrid=Fusion())
    measured["encoder"] = {"weights": "other", "prompt": ""}
    path.write_text(json.dumps({"format_version": 1, "mmcl_version": "0", "thresholds": {"text-text": measured}}))
    with pytest.raises(MmclError, match="other weights"):
        searcher.search("a red dog", match=True)
    path.unlink()


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("", {}, "a query is empty"),
        (Like("zz"), {}, "zz"),
        ([("a red dog", 1.0), (Like("a"), -1.0)], {}, "comes to nothing"),
        ("red", {"where": "weight > 2"}, "weight"),
        ("red", {"where": "weight > 2", "hybrid": True}, "weight"),
        ("red", {"where": "price >"}, "price"),
    ],
)
def test_bad_queries_are_refused(searcher, query, options, message):
    with pytest.raises(MmclError, match=message):
        searcher.search(query, **options)


def test_an_index_in_memory_has_no_words_and_no_place_for_weights(searcher):
    bare = Searcher(searcher.index, searcher.encoder)
    with pytest.raises(MmclError, match="lexical"):
        bare.search("red", hybrid=True)
    with pytest.raises(MmclError, match="no folder"):
        bare.keep_fusion(Fusion())
    with pytest.raises(MmclError, match="whole numbers"):
        Searcher(Index.build(np.eye(8, dtype="float32")), searcher.encoder).search(Like("a"))


def test_a_model_of_another_dimension_is_refused_with_the_cure(both):
    index = Index.build(np.eye(3, dtype=np.float32))
    with pytest.raises(MmclError, match="its vectors have 3 dimensions, those of 'tiny' have 8; name the model that"):
        Searcher(index, both)

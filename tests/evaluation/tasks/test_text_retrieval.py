from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import pytrec_eval

from mmcl.data.rows import Rows
from mmcl.data.sources.beir import Beir, open_beir
from mmcl.evaluation import beir_retrieval, retrieval_of_texts
from mmcl.runtime.errors import MmclError

CRANFIELD = Path(__file__).parents[4] / "shared" / "data" / "cranfield"


class Random:
    """A vector drawn for each text, by its words: no ties, but texts that share words are near."""

    def encode(self, texts: list[str]) -> np.ndarray:
        drawn: dict[str, np.ndarray] = {}
        for word in {word for text in texts for word in text.split()}:
            drawn[word] = np.random.default_rng(zlib.crc32(word.encode())).standard_normal(24)
        return np.stack([np.sum([drawn[word] for word in text.split()], axis=0) for text in texts]).astype(np.float32)


class Prompted(Random):
    """Records the prompts that it is asked for."""

    def __init__(self, **prompts: str) -> None:
        self.prompts = prompts
        self.asked: list[str | None] = []

    def encode(self, texts: list[str], prompt: str | None = None) -> np.ndarray:
        self.asked.append(prompt)
        return super().encode(texts)


def small() -> Beir:
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(80)]
    corpus = {f"d{number}": " ".join(rng.choice(words, 9)) for number in range(150)}
    queries = {f"q{number}": " ".join(rng.choice(words, 3)) for number in range(40)}
    documents = [*corpus, "absent"]
    qrels = {
        query: {str(document): int(rng.integers(0, 4)) for document in rng.choice(documents, 12, replace=False)}
        for query in queries
    }
    return Beir("small", corpus, queries, qrels)


def check_with_trec_eval(beir: Beir) -> None:
    encoder = Random()
    ours = beir_retrieval(encoder, beir, ks=(10, 100), self_matches="keep")
    queries, corpus = (encoder.encode(list(texts.values())).astype(np.float64) for texts in (beir.queries, beir.corpus))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    run = {
        query: dict(zip(beir.corpus, row.tolist(), strict=True))
        for query, row in zip(beir.queries, queries @ corpus.T, strict=True)
    }
    qrels = {query: {key: int(grade) for key, grade in grades.items()} for query, grades in beir.qrels.items()}
    names = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map": "map", "mrr": "recip_rank"}
    measures = {"ndcg_cut.10", "recall.100", "map", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for name, trec in names.items():
        expected = [theirs[query][trec] for query in ours.query_ids]
        np.testing.assert_allclose(ours.per_query[name], expected, atol=1e-9, err_msg=name)
        low, high = ours.intervals[name]
        assert low < ours.metrics[name] < high


def test_graded_judgements_score_as_trec_eval() -> None:
    check_with_trec_eval(small())


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="needs the Cranfield collection at ../shared/data/cranfield")
def test_cranfield_scores_as_trec_eval() -> None:
    check_with_trec_eval(open_beir(CRANFIELD, "test"))


def test_the_models_own_prompts_are_used_where_it_has_them() -> None:
    for prompts, expected in (
        ({"query": "query: ", "passage": "passage: "}, ["query", "passage"]),
        ({"query": "search: "}, ["query", None]),
        ({"document": "", "corpus": "", "sts": ""}, [None, "document"]),
        ({}, [None, None]),
    ):
        encoder = Prompted(**prompts)
        beir_retrieval(encoder, small(), bootstrap=0)
        assert encoder.asked == expected
    encoder = Prompted(query="query: ")
    beir_retrieval(encoder, small(), query_prompt="", document_prompt="other", bootstrap=0)
    assert encoder.asked == ["", "other"]


def rows(**columns: list) -> Rows:
    return Rows(datasets.Dataset.from_dict(columns), name="faq.csv", fingerprint="0")


def test_columns_are_searched_both_ways_and_equal_texts_are_the_same_thing(caplog) -> None:
    table = rows(
        question=["a b", "c d", "a b", None, "e f", "g"],
        answer=[["a b x", "a b y"], ["c d x"], ["a b z"], ["no question"], [" "], ["c d x"]],
        id=list("uvwxyz"),
    )
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        scores = retrieval_of_texts(Random(), table, query="question", document="answer", ks=(1, 3), bootstrap=0)
    assert "2 of 6 rows left out: no text in 'question' or 'answer'" in caplog.text
    forth, back = scores["query_to_document"], scores["document_to_query"]
    assert forth.query_ids == ["u", "v", "w", "z"]
    assert back.query_ids == ["u#0", "u#1", "v#0", "w#0", "z#0"]
    assert forth.relevant.tolist() == [3, 2, 3, 2]  # the two equal questions share their three answers
    assert back.relevant.tolist() == [2, 2, 2, 2, 2]
    assert forth.metrics["hit@3"] >= 0.75
    assert forth.data == back.data != ""


def test_pairs_that_stand_together_in_the_training_rows_are_warned_of(tmp_path: Path, caplog) -> None:
    beir, encoder = small(), Random()
    (query, document), *_ = (
        (q, d) for q, grades in beir.qrels.items() for d, g in grades.items() if g and d in beir.corpus
    )
    rows = [
        {"q": beir.queries[query], "d": ["other", beir.corpus[document]]},
        {"q": beir.queries["q1"], "d": ["other"]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder.card = {"data": {"source": str(tmp_path / "train.jsonl")}}
    beir_retrieval(encoder, beir, bootstrap=0)
    assert "small: 1 of " in caplog.text
    assert "relevant pairs of query and document stand in what the model was trained on" in caplog.text


class Uncased(Random):
    """Lower-cases and strips, and says so."""

    def encode(self, texts: list[str]) -> np.ndarray:
        return super().encode([text.lower() for text in texts])

    def text_identities(self, texts: list[str], prompt: str | None = None) -> np.ndarray:
        return np.array([zlib.crc32(text.lower().strip().encode()) for text in texts])


def test_texts_that_the_model_cannot_tell_apart_are_the_same_thing() -> None:
    """A right answer that stands there in another case is right as well; by string, it would be a tie, and a miss."""
    table = {"query": ["capital of france", "Capital of France ", "a dog"], "document": ["paris", "Paris ", "a DOG"]}
    rows = Rows(datasets.Dataset.from_dict(table), name="table", fingerprint="")
    by_string = retrieval_of_texts(Random(), rows, query="query", document="document", ks=(1,))["query_to_document"]
    found = retrieval_of_texts(Uncased(), rows, query="query", document="document", ks=(1,))["query_to_document"]
    assert by_string.relevant.tolist() == [1, 1, 1]
    assert found.relevant.tolist() == [2, 2, 1]
    assert found.queries_in_corpus == 1
    dropped = retrieval_of_texts(
        Uncased(), rows, query="query", document="document", ks=(1,), self_matches="drop", bootstrap=0
    )
    assert dropped["query_to_document"].query_ids == ["0", "1"]
    assert dropped["document_to_query"].query_ids == ["0#0", "1#0"]


def test_mistakes_are_one_line() -> None:
    with pytest.raises(MmclError, match=r"no column 'anwser'; it has .*did you mean 'answer'?"):
        retrieval_of_texts(Random(), rows(question=["a"], answer=["b"]), query="question", document="anwser")
    with pytest.raises(MmclError, match="no row has text in both 'question' and 'answer'"):
        retrieval_of_texts(Random(), rows(question=[""], answer=["b"]), query="question", document="answer")
    several = rows(question=[["a"], ["a", "c"]], answer=["b", "d"])
    with pytest.raises(MmclError, match="row 1 has several texts in 'question'"):
        retrieval_of_texts(Random(), several, query="question", document="answer")

"""mteb's own tasks on local rows, judged by mteb and by us."""

from __future__ import annotations

import itertools
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from mmcl.evaluation.mteb_adapter import mteb_model
from mmcl.evaluation.tasks.retrieval import retrieval
from mmcl.runtime.errors import MmclError

mteb = pytest.importorskip("mteb", minversion="2.0", reason="mteb is not installed")

WORDS = ["river", "stone", "cloud", "music", "engine", "garden", "winter", "letter"]
TEXTS = [f"{a} {b}" for a, b in itertools.combinations(WORDS, 2)]  # none is another in another order: no ties


class Bag:
    """Each text as the mean of random vectors of its words: an encoder of no network, which notes how it was asked."""

    name, dim, modalities = "sample:bag of words", 16, ("text",)

    def __init__(self, prompts=None):
        self.prompts, self.max_tokens, self.asked = prompts or {}, 32, []

    @property
    def towers(self):
        return self

    def text(self):
        return SimpleNamespace(processor=self)

    def parameters(self):
        return []

    def state_dict(self):
        return {}

    def encode(self, inputs, modality=None, prompt=None, show_progress=None, precision="float32"):
        self.asked.append(prompt)
        vectors = []
        for text in inputs:
            numbers = [np.random.default_rng(zlib.crc32(word.encode())).standard_normal(16) for word in text.split()]
            vectors.append(np.mean(numbers, axis=0))
        vectors = np.array(vectors)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def metadata(kind, category):
    return mteb.TaskMetadata(
        name=f"Local{kind}",
        dataset={"path": "local/none", "revision": "1"},
        description="Rows made here.",
        reference=None,
        type=kind,
        category=category,
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman" if kind == "STS" else "ndcg_at_10",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )


@pytest.fixture(scope="module")
def pairs():
    generator = np.random.default_rng(0)
    return {
        "sentence1": TEXTS,
        "sentence2": [" ".join(generator.choice(WORDS, 3, replace=False)) for _ in TEXTS],
        "score": list(generator.integers(0, 6, len(TEXTS)).astype(float)),
    }


@pytest.fixture(scope="module")
def sts_task(pairs):
    from datasets import Dataset
    from mteb.abstasks import AbsTaskSTS

    class LocalSts(AbsTaskSTS):
        metadata = metadata("STS", "t2t")

        def load_data(self, *args, **kwargs):
            self.dataset = {"test": Dataset.from_dict(pairs)}
            self.data_loaded = True

    return LocalSts()


@pytest.fixture(scope="module")
def search():
    documents = {f"d{number}": text for number, text in enumerate(TEXTS)}
    queries = {f"q{number}": word for number, word in enumerate(WORDS)}
    generator = np.random.default_rng(1)
    judged = {query: generator.choice(list(documents), 6, replace=False) for query in queries}
    return queries, documents, {q: {str(d): int(generator.integers(1, 4)) for d in ds} for q, ds in judged.items()}


@pytest.fixture(scope="module")
def search_task(search):
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    queries, documents, qrels = search

    class LocalSearch(AbsTaskRetrieval):
        metadata = metadata("Retrieval", "t2t")

        def load_data(self, *args, **kwargs):
            rows = {"id": list(documents), "title": [""] * len(documents), "text": list(documents.values())}
            split = {
                "corpus": Dataset.from_dict(rows),
                "queries": Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
                "relevant_docs": qrels,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return LocalSearch()


def judge(model, task):
    results = mteb.evaluate(
        model, task, cache=None, co2_tracker=False, encode_kwargs={"batch_size": 16}, show_progress_bar=False
    )
    return results.task_results[0].scores["test"][0]


def test_it_is_of_mtebs_encoder_protocol():
    from mteb.models import EncoderProtocol

    model = mteb_model(Bag())
    assert isinstance(model, EncoderProtocol)
    assert model.mteb_model_meta.name == "mmcl/sample-bag-of-words"
    assert model.mteb_model_meta.embed_dim == 16


def test_an_sts_task_gives_spearmans_correlation(pairs, sts_task):
    encoder = Bag()
    first, second = (encoder.encode(pairs[name]).astype(np.float64) for name in ("sentence1", "sentence2"))
    expected = spearmanr((first * second).sum(1).round(9), pairs["score"]).statistic
    assert judge(mteb_model(encoder), sts_task)["cosine_spearman"] == pytest.approx(expected, abs=1e-3)


def test_a_retrieval_task_gives_our_ndcg(search, search_task):
    encoder, (queries, documents, qrels) = Bag(), search
    ours = retrieval(
        dict(zip(queries, encoder.encode(list(queries.values())), strict=True)),
        dict(zip(documents, encoder.encode(list(documents.values())), strict=True)),
        qrels,
    )
    assert judge(mteb_model(encoder), search_task)["ndcg_at_10"] == pytest.approx(ours.metrics["ndcg@10"], abs=1e-4)


@pytest.mark.parametrize("documents", ["document", "passage"])
def test_prompts_are_chosen_by_the_side_of_the_task(documents, search_task):
    encoder = Bag({"query": "query: ", documents: "passage: "})
    judge(mteb_model(encoder), search_task)
    assert set(encoder.asked) == {"query", documents}


def test_a_tasks_own_prompt_comes_before_that_of_its_side(search_task):
    encoder = Bag({"query": "query: ", "LocalRetrieval": "find: "})
    judge(mteb_model(encoder), search_task)
    assert set(encoder.asked) == {"LocalRetrieval"}


def test_without_a_fitting_prompt_none_is_named(sts_task):
    encoder = Bag({"clustering": "group: "})
    judge(mteb_model(encoder), sts_task)
    assert set(encoder.asked) == {None}


def test_what_is_neither_text_nor_image_is_refused(search_task):
    with pytest.raises(MmclError, match="image and text"):
        mteb_model(Bag()).encode([{"text": ["a"], "image": [None]}], task_metadata=search_task.metadata)


def test_mtebs_own_tasks_of_texts_all_run():
    """Those that mteb checks models with: retrieval, reranking, STS, classification, clustering and more."""
    mocks = pytest.importorskip("mteb.mocks", reason="this mteb has no tasks to check models with")
    results = dict(mteb.mock_run(mteb_model(Bag({"query": "query: "}))).items())
    ran = {}
    for task in mocks.ALL_MOCK_TASK_TEST_GRID:
        if set(task.metadata.modalities) == {"text"}:
            result = results[task.metadata.name]
            assert isinstance(result, mteb.TaskResult), f"{task.metadata.name}: {result}"
            ran.setdefault(task.metadata.type, []).append(task.metadata.name)
    assert {"Retrieval", "Reranking", "STS", "Classification", "Clustering", "PairClassification"} <= ran.keys()

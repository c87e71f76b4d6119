import numpy as np

from mmcl.evaluation.examples import examples, worst_answers


def unit(*shape):
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_examples_are_the_nearest_documents_of_queries_drawn_once_each():
    queries, documents = unit(9, 8), unit(20, 8)
    answers = [np.array([query, query + 10]) for query in range(9)]
    found = examples(queries, documents, answers, count=4, k=5)
    assert len({example.query for example in found}) == 4
    for example in found:
        order = np.argsort(-(queries[example.query].astype(np.float64) @ documents.T.astype(np.float64)))
        assert example.documents.tolist() == order[:5].tolist()
        assert example.right.tolist() == [row in (example.query, example.query + 10) for row in order[:5]]
    assert len(examples(queries, documents, answers, count=99, k=99)) == 9


def test_the_worst_answers_are_those_with_the_largest_margins():
    queries, documents = unit(30, 6), unit(40, 6)
    answers = [np.array([query, query + 7]) for query in range(30)]
    margins = {}
    for query in range(30):
        scores = queries[query] @ documents.T
        best = scores[answers[query]].max()
        if scores.max() > best:
            margins[query] = (scores.max() - best, int((scores >= best).sum()))
    wrong = worst_answers(queries, documents, answers, count=5)
    assert [answer.query for answer in wrong] == sorted(margins, key=lambda query: -margins[query][0])[:5]
    assert [answer.rank_of_right for answer in wrong] == [margins[answer.query][1] for answer in wrong]
    assert all(
        answer.right in answers[answer.query] and answer.nearest not in answers[answer.query] for answer in wrong
    )


def test_a_query_that_finds_its_own_first_is_no_wrong_answer():
    vectors = np.eye(4, dtype=np.float32)
    assert worst_answers(vectors, vectors, [np.array([row]) for row in range(4)], count=5) == []

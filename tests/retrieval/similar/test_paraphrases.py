"""The most similar pairs, against sentence-transformers and all products."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers.util import paraphrase_mining_embeddings

from mmcl.data.sources import open_source
from mmcl.retrieval.similar.items import Side
from mmcl.retrieval.similar.pairs import UnitVectors
from mmcl.retrieval.similar.paraphrases import best_pairs, mine_paraphrases

from .conftest import TEXTS


@pytest.mark.parametrize("count", [10, 500, 100_000])
def test_pairs_are_those_of_sentence_transformers(clustered, count):
    reference = paraphrase_mining_embeddings(torch.from_numpy(clustered), max_pairs=count, top_k=299)
    found = best_pairs(UnitVectors(clustered), count)
    assert len(found.first) == len(reference) == min(count, 300 * 299 // 2)
    np.testing.assert_allclose(found.scores, [score for score, _, _ in reference], atol=2e-6)
    lowest = reference[-1][0]
    sure = {(i, j) for score, i, j in reference if score > lowest + 1e-5}
    assert sure <= set(zip(found.first.tolist(), found.second.tolist(), strict=True))


def test_the_file_holds_pairs_of_different_words_best_first(encoder, tmp_path):
    rows = [*TEXTS, TEXTS[3].upper(), f"{TEXTS[5]}!", TEXTS[5], ""]
    (tmp_path / "texts.txt").write_text("\n".join(rows[:-1]) + "\n")
    found = mine_paraphrases(
        encoder, open_source(tmp_path / "texts.txt"), Side("text"), tmp_path / "pairs.parquet", 20, threshold=0.0
    )
    assert (found.rows, found.distinct, found.pairs) == (len(TEXTS) + 3, len(TEXTS), 20)
    written = pq.read_table(tmp_path / "pairs.parquet").to_pydict()
    vectors = encoder.encode(TEXTS)
    products = np.triu(vectors @ vectors.T, 1)
    np.testing.assert_allclose(
        written["score"], np.sort(products[np.triu_indices(len(TEXTS), 1)])[::-1][:20], atol=1e-5
    )
    for one, other, score in zip(written["anchor"], written["positive"], written["score"], strict=True):
        assert products[TEXTS.index(one), TEXTS.index(other)] == pytest.approx(score, abs=1e-5)
    assert [TEXTS[int(id_)] for id_ in written["anchor_id"]] == written["anchor"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

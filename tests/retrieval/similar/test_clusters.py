"""Communities against sentence-transformers, and k-means against what FAISS and the definition say."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers.util import community_detection

from mmcl.retrieval.similar import clusters as module
from mmcl.retrieval.similar.clusters import communities, kmeans, write_clusters
from mmcl.retrieval.similar.pairs import UnitVectors
from mmcl.runtime.errors import MmclError


@pytest.mark.parametrize(("threshold", "smallest"), [(0.5, 5), (0.8, 3), (0.95, 2), (0.999, 10)])
@pytest.mark.parametrize("listed", [1 << 22, 50])
def test_communities_are_those_of_sentence_transformers(clustered, threshold, smallest, listed, monkeypatch):
    monkeypatch.setattr(module, "_LISTED", listed)
    reference = community_detection(torch.from_numpy(clustered), threshold, smallest)
    found = communities(UnitVectors(clustered), threshold, smallest=smallest)
    members = [set(np.flatnonzero(found.of_rows == number).tolist()) for number in range(len(found.sizes))]
    assert members == [set(group) for group in reference]
    assert [rows[0] for rows in found.central(1)] == [group[0] for group in reference]
    assert found.sizes.tolist() == [len(group) for group in reference]


def planted(seed=0):
    """Vectors of many lengths in 8 directions, which spherical k-means tells apart and lengths hide from the other."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(16, 8)))[0].T
    of = np.sort(rng.integers(0, 8, 400))
    vectors = directions[of] + rng.normal(size=(400, 16)) * 0.05
    return of, (vectors * rng.uniform(0.05, 20.0, (400, 1))).astype("float32")


def test_kmeans_finds_directions_whatever_the_lengths():
    of, vectors = planted()
    best = max((kmeans(UnitVectors(vectors), 8, seed=seed) for seed in range(5)), key=lambda each: each.scores.sum())
    groups = {tuple(np.flatnonzero(best.of_rows == number)) for number in range(8)}
    assert groups == {tuple(np.flatnonzero(of == number)) for number in range(8)}
    assert best.sizes.tolist() == sorted(best.sizes.tolist(), reverse=True)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for number, rows in enumerate(best.central(3)):
        mine = np.flatnonzero(best.of_rows == number)
        centre = unit[mine].mean(0)
        near = unit[mine] @ (centre / np.linalg.norm(centre))
        assert rows.tolist() == mine[np.argsort(-near)[:3]].tolist()
        np.testing.assert_allclose(best.scores[mine], near, atol=1e-4)


def test_kmeans_of_distances_assigns_each_row_to_the_nearest_mean(clustered):
    found = kmeans(UnitVectors(clustered), 6, similarity="euclidean", iterations=100)
    means = np.stack([clustered[found.of_rows == number].mean(0) for number in range(len(found.sizes))])
    distances = np.linalg.norm(clustered[:, None] - means[None], axis=2)
    assert (distances.argmin(1) == found.of_rows).mean() > 0.98
    np.testing.assert_allclose(-found.scores, distances[np.arange(300), found.of_rows], rtol=0.05, atol=0.05)


def test_the_same_seed_gives_the_same_clusters_and_too_many_are_refused(clustered):
    vectors = UnitVectors(clustered)
    assert np.array_equal(kmeans(vectors, 10, seed=3).of_rows, kmeans(vectors, 10, seed=3).of_rows)
    assert len(kmeans(vectors, 300).sizes) <= 300
    with pytest.raises(MmclError, match="301 clusters of 300 vectors"):
        kmeans(vectors, 301)


def test_the_files_name_the_cluster_of_each_row(clustered, tmp_path):
    found = communities(UnitVectors(clustered), 0.95, smallest=5)
    about = write_clusters(found, clustered, tmp_path, central=2)
    table = pq.read_table(tmp_path / "clusters.parquet").to_pydict()
    assert table["id"] == list(range(300))
    assert [-1 if cluster is None else cluster for cluster in table["cluster"]] == found.of_rows.tolist()
    assert about == json.loads((tmp_path / "clusters.json").read_text())
    assert about["none"] == np.count_nonzero(found.of_rows == -1) == table["score"].count(None)
    assert [each["central"] for each in about["clusters"]] == [list(map(str, rows)) for rows in found.central(2)]


def test_zero_vectors_have_euclidean_clusters_and_no_cosine():
    vectors = np.array([[0, 0], [0.1, 0], [5, 5], [5.1, 5]], np.float32)
    assert kmeans(UnitVectors(vectors), 2, similarity="euclidean").sizes.tolist() == [2, 2]
    with pytest.raises(MmclError, match="id 0 is a zero vector"):
        kmeans(UnitVectors(vectors), 2)


@pytest.mark.parametrize("threshold", [2.0, -1.5, float("nan")])
def test_a_community_has_a_cosine_for_threshold(clustered, threshold):
    with pytest.raises(MmclError, match="a cosine, above -1 and at most 1"):
        communities(UnitVectors(clustered), threshold)

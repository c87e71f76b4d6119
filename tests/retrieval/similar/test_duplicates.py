"""Near-duplicates, their clusters and what is kept, against brute force."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.sparse.csgraph import connected_components

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.retrieval.similar.duplicates import find_duplicates
from mmcl.runtime.errors import MmclError


def read(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pydict()


def components(cosines, threshold):
    """The members of each cluster of two or more."""
    near = cosines >= threshold
    labels = connected_components(near, directed=False)[1]
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return [group.tolist() for group in groups if len(group) > 1]


@pytest.mark.parametrize("by_index", [False, True])
def test_clusters_are_the_connected_components(clustered, cosines, tmp_path, by_index):
    found = find_duplicates(clustered, tmp_path, 0.95, by_index=by_index)
    expected = components(cosines, 0.95)
    clusters = read(tmp_path, "clusters")
    groups = {}
    for id_, cluster in zip(clusters["id"], clusters["cluster"], strict=True):
        groups.setdefault(cluster, []).append(id_)
    assert sorted(map(sorted, groups.values())) == sorted(expected)
    sizes = [len(groups[number]) for number in range(len(groups))]
    assert sizes == sorted(sizes, reverse=True)
    assert clusters["size"] == [len(groups[number]) for number in clusters["cluster"]]
    gone = {member for group in expected for member in group[1:]}
    assert set(read(tmp_path, "kept")["id"]) == set(range(300)) - gone
    assert found.clusters == len(expected)
    assert found.removed == len(gone) == 300 - found.kept
    assert found.pairs == np.count_nonzero(np.triu(cosines, 1) >= 0.95) == len(read(tmp_path, "pairs")["id"])
    assert json.loads((tmp_path / "dedup.json").read_text())["pairs"] == found.pairs


def test_what_stays_of_a_cluster_is_the_most_central_one_or_the_highest(clustered, cosines, tmp_path):
    clusters = components(cosines, 0.9)
    find_duplicates(clustered, tmp_path / "central", 0.9, keep="central")
    near = np.where(cosines >= 0.9, cosines, 0)
    kept = set(read(tmp_path / "central", "kept")["id"])
    for group in clusters:
        (stays,) = kept & set(group)
        sums = near[np.ix_(group, group)].sum(1)
        assert sums[group.index(stays)] == pytest.approx(sums.max(), abs=1e-4)
    value = np.random.default_rng(0).integers(0, 5, 300).astype("float64")
    value[::7] = np.nan
    find_duplicates(clustered, tmp_path / "value", 0.9, keep=value)
    kept = set(read(tmp_path / "value", "kept")["id"])
    for group in clusters:
        (stays,) = kept & set(group)
        best = np.nanmax([*value[group], -1])
        assert stays == next(member for member in group if value[member] == best or best == -1)


def test_leakage_is_found_between_two_folders_of_vectors(clustered, cosines, tmp_path):
    for name, rows in (("test", slice(0, 100)), ("train", slice(100, 300))):
        with VectorWriter(tmp_path / name, dim=16, model="m", source={}, shard_rows=64) as writer:
            ids = [f"{name}-{row}" for row in range(rows.start, rows.stop)]
            writer.append(ids, clustered[rows], rows_done=len(ids))
    found = find_duplicates(
        open_vectors(tmp_path / "test"), tmp_path / "out", 0.95, against=open_vectors(tmp_path / "train")
    )
    pairs = read(tmp_path / "out", "pairs")
    expected = np.argwhere(cosines[:100, 100:] >= 0.95)
    assert set(zip(pairs["id"], pairs["other"], strict=True)) == {
        (f"test-{i}", f"train-{j + 100}") for i, j in expected.tolist()
    }
    leaked = set(expected[:, 0].tolist())
    assert read(tmp_path / "out", "kept")["id"] == [f"test-{row}" for row in range(100) if row not in leaked]
    assert (found.clusters, found.against, found.removed) == (None, 200, len(leaked))
    assert not (tmp_path / "out" / "clusters.parquet").exists()


def test_equal_vectors_are_found_at_a_threshold_of_one_and_pairs_are_bounded(clustered, tmp_path):
    copies = np.repeat(clustered[:40], 5, axis=0) * np.tile([1.0, 3.0, 0.1, 7.0, 1.0], 40)[:, None]
    found = find_duplicates(copies, tmp_path, 1.0, most_pairs=100)
    assert (found.kept, found.clusters, found.pairs, found.written_pairs) == (40, 40, 400, 100)
    assert len(read(tmp_path, "pairs")["id"]) == 100


def test_nothing_alike_gives_empty_files(tmp_path):
    found = find_duplicates(np.eye(5, dtype="float32"), tmp_path, 0.5)
    assert (found.pairs, found.clusters, found.kept) == (0, 0, 5)
    assert read(tmp_path, "pairs") == {"id": [], "other": [], "score": []}
    assert read(tmp_path, "clusters")["id"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold 1.5: a cosine"),
        ({"threshold": 0.9, "keep": "last"}, "keep is 'last'; it is first, central"),
        ({"threshold": 0.9, "keep": np.zeros(3)}, "keep has 3 values for 300 vectors"),
    ],
)
def test_what_makes_no_sense_is_refused(clustered, tmp_path, options, message):
    with pytest.raises(MmclError, match=message):
        find_duplicates(clustered, tmp_path, **options)


def test_what_cannot_be_compared_leaves_nothing_and_is_named_by_its_id(clustered, tmp_path):
    np.save(tmp_path / "zero.npy", np.eye(3, 16, dtype="float32")[[0, 1, 1, 2]] * [[1], [1], [0], [1]])
    (tmp_path / "zero.ids.txt").write_text("a\nb\nc\nd\n")
    out = tmp_path / "out"
    with pytest.raises(MmclError, match=r"id 'c' is a zero vector, whose cosine is undefined; leave it out$"):
        find_duplicates(open_vectors(tmp_path / "zero.npy"), out, 0.9)
    with pytest.raises(MmclError, match="the vectors have 16 dimensions, those to compare with 3"):
        find_duplicates(clustered, tmp_path / "nothing", 0.9, against=np.eye(3))
    assert not (tmp_path / "nothing").exists()


def test_clusters_of_an_earlier_search_do_not_stay_beside_matches_with_another_corpus(clustered, tmp_path):
    find_duplicates(clustered, tmp_path, 0.9)
    assert (tmp_path / "clusters.parquet").exists()
    find_duplicates(clustered, tmp_path, 0.9, against=clustered[:10])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dedup.json", "kept.parquet", "pairs.parquet"]

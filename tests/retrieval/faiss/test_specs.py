import faiss
import numpy as np
import pytest

from mmcl.retrieval import Index
from mmcl.retrieval.faiss import specs
from mmcl.runtime.errors import MmclError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 1_000, 199_999])
def test_few_vectors_are_searched_exactly(count):
    spec, why = specs.choose_spec(count, 512)
    assert spec == "Flat"
    assert why.startswith("exact")


@pytest.mark.parametrize(
    ("count", "dim", "spec"),
    [
        (10**6, 384, "IVF1024,PQ192x4fsr,Refine(SQ8)"),
        (10**6, 63, "IVF1024,PQ63x4fsr,Refine(SQ8)"),
        (10**6, 8, "IVF1024,Flat"),
    ],
)
def test_many_vectors_get_root_n_cells_and_codes_that_suit_their_components(count, dim, spec):
    assert specs.choose_spec(count, dim)[0] == spec


@pytest.mark.parametrize(
    "spec", ["IVF16,RaBitQ4", "IVF16,RaBitQ", "OPQ8_32,IVF16,PQ8x4fsr", "IVF16,PQ32x4fsr,Refine(SQ8)"]
)
def test_every_family_is_built_and_tuned(spec):
    vectors = RNG.normal(size=(2_000, 64)).astype("float32")
    about = Index.build(vectors, spec=spec).info()
    assert 0 < about["recall"] <= 1
    assert about["nprobe"] >= 1


@pytest.mark.parametrize("dim", [2, 63, 384])
@pytest.mark.parametrize("count", [1_000, 200_000, 37_000_000])
def test_what_is_chosen_fits_the_memory_and_more_memory_never_chooses_less(count, dim):
    sizes = []
    for share in (0.02, 0.15, 0.3, 0.5, 1.1):
        memory = int(share * 4 * count * dim)
        spec, why = specs.choose_spec(count, dim, memory)
        sizes.append(specs.bytes_needed(spec, count, dim))
        assert sizes[-1] <= memory or "the least there is" in why
        specs.make(spec, dim, "cosine")
    assert specs.choose_spec(count, dim, 10**15)[0] == specs.choose_spec(count, dim)[0]


@pytest.mark.parametrize(
    "spec", ["Flat", "SQ8", "IVF16,Flat", "IVF16,PQ8x4fsr,Refine(SQ8)", "HNSW16", "HNSW32,SQ8", "IVF16,RaBitQ"]
)
def test_the_bytes_foretold_are_those_of_the_file(spec, tmp_path):
    index = specs.make(spec, 32, "euclidean")
    vectors = RNG.normal(size=(5_000, 32)).astype("float32")
    index.train(vectors[:5_000])
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index"))
    assert specs.bytes_needed(spec, len(vectors), 32) == pytest.approx((tmp_path / "index").stat().st_size, rel=0.1)


def test_training_takes_a_sample_of_many_and_all_of_few():
    index = specs.make("IVF2048,Flat", 4, "cosine")
    rows = specs.training_rows(index, 1_000_000)
    assert len(rows) == len(np.unique(rows)) == 64 * 2048
    np.testing.assert_array_equal(rows, specs.training_rows(index, 1_000_000))
    np.testing.assert_array_equal(specs.training_rows(index, 500), np.arange(500))
    assert len(specs.training_rows(specs.make("PQ4", 4, "cosine"), 10**6)) == 65_536


@pytest.mark.parametrize("spec", ["IVF4,Flat", "RR2,IVF4,Flat", "IVF4,PQ2,RFlat", "OPQ2,IVF4,PQ2,Refine(SQfp16)"])
def test_the_inverted_file_is_found_below_what_surrounds_it(spec):
    index = specs.make(spec, 4, "dot")
    assert specs.inverted_file(index).nlist == 4
    assert specs.has_effort(index)


@pytest.mark.parametrize("spec", ["Flat", "HNSW8", "PQ2", "SQ8"])
def test_other_indexes_have_no_cells(spec):
    index = specs.make(spec, 4, "dot")
    assert specs.inverted_file(index) is None
    assert specs.has_effort(index) == (spec == "HNSW8")


@pytest.mark.parametrize("spec", ["PCA2,Flat", "PCAR4,IVF4,Flat", "ITQ4,Flat"])
def test_what_subtracts_the_mean_is_refused_unless_distances_are_asked_for(spec):
    for similarity in ("cosine", "dot"):
        with pytest.raises(MmclError, match="subtracts the mean"):
            specs.make(spec, 4, similarity)
    assert specs.make(spec, 4, "euclidean").d == 4


ANY = ["Flat", "SQ8", "HNSW8", "IVF8,Flat", "RR8,IVF8,SQ8", "IVF8,PQ4x4fsr,Refine(SQ8)", "HNSW8,SQ8,Refine(Flat)"]


@pytest.mark.parametrize("spec", ANY)
def test_a_search_finds_only_what_is_selected_and_takes_its_effort_alone(spec):
    index = specs.make(spec, 8, "euclidean")
    vectors = RNG.normal(size=(2_000, 8)).astype("float32")
    index.train(vectors)
    index.add(vectors)
    if "Refine" in spec:
        index.k_factor = 20
    allowed = np.arange(0, 2_000, 3)
    parameters = specs.search_parameters(index, 8 if "IVF" in spec else 200, faiss.IDSelectorBatch(allowed))
    found = index.search(vectors[:50], 5, params=parameters)[1]
    assert set(found.ravel()) <= set(allowed) | {-1}
    distances = ((vectors[:50, None] - vectors[None, allowed]) ** 2).sum(2)
    nearest = allowed[np.argsort(distances, 1)[:, :5]]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, nearest, strict=True)]) > 0.9
    if specs.has_effort(index):
        little = index.search(vectors[:50], 5, params=specs.search_parameters(index, 1))[1]
        much = index.search(vectors[:50], 5, params=specs.search_parameters(index, 2_000))[1]
        assert (little != much).any()


def test_finer_copies_follow_one_another_while_they_fit():
    spec, seen = "IVF64,PQ8x4fsr", []
    while spec := specs.finer(spec, 1_000, 16):
        seen.append(spec.rpartition(",")[2])
    assert seen == ["Refine(SQ8)", "Refine(SQfp16)", "Refine(Flat)"]
    assert specs.finer("IVF64,PQ8x4fsr", 10**6, 16, memory=35 * 10**6) == "IVF64,PQ8x4fsr,Refine(SQ8)"
    assert specs.finer("IVF64,PQ8x4fsr", 10**6, 16, memory=20 * 10**6) is None
    assert specs.finer("IVF64,Flat", 1_000, 16) is specs.finer("HNSW32", 1_000, 16) is None


@pytest.mark.parametrize("spec", ["IVF8,PQ4x4fsr", "IVF8,PQ4x4fsr,Refine(SQ8)"])
def test_a_refinement_is_put_around_an_index_that_is_built(spec):
    vectors = RNG.normal(size=(3_000, 8)).astype("float32")
    index = specs.make(spec, 8, "dot")
    index.train(vectors)
    index.add(vectors)
    index = specs.refine(index, "IVF8,PQ4x4fsr,Refine(Flat)", "dot")
    index.refine_index.add(vectors)
    index.k_factor = 600
    again = faiss.deserialize_index(faiss.serialize_index(index))
    for one in (index, again):
        found = one.search(vectors[:20], 5, params=specs.search_parameters(one, 8))[1]
        np.testing.assert_array_equal(found, np.argsort(-vectors[:20] @ vectors.T, 1)[:, :5])

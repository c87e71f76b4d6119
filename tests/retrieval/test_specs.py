import math

import numpy as np
import pytest

from mmcl.retrieval import specs
from mmcl.runtime.errors import MmclError


@pytest.mark.parametrize("count", [1, 1_000, 199_999])
def test_few_vectors_are_searched_exactly(count):
    spec, why = specs.choose_spec(count, 512)
    assert spec == "Flat"
    assert why.startswith("exact")


@pytest.mark.parametrize("count", [200_000, 1_000_000, 37_000_000, 10**9])
def test_many_vectors_get_about_four_root_n_cells(count):
    spec, why = specs.choose_spec(count, 64)
    cells = int(spec.removeprefix("IVF").split(",")[0])
    assert math.log2(cells) % 1 == 0
    assert 2**-0.5 <= cells / (4 * math.sqrt(count)) <= 2**0.5
    assert why.startswith("approximate")


def test_vectors_that_would_not_fit_8_gib_take_a_byte_a_component():
    rows = specs.FULL_PRECISION_BYTES // (4 * 512)
    assert specs.choose_spec(rows, 512)[0].endswith(",Flat")
    assert specs.choose_spec(rows + 1, 512)[0].endswith(",SQ8")


def test_training_takes_a_sample_of_many_and_all_of_few():
    index = specs.make("IVF2048,Flat", 4, "cosine")
    rows = specs.training_rows(index, 1_000_000)
    assert len(rows) == len(np.unique(rows)) == 64 * 2048
    np.testing.assert_array_equal(rows, specs.training_rows(index, 1_000_000))
    np.testing.assert_array_equal(specs.training_rows(index, 500), np.arange(500))
    assert len(specs.training_rows(specs.make("PQ4", 4, "cosine"), 10**6)) == 65_536


@pytest.mark.parametrize("spec", ["IVF4,Flat", "RR2,IVF4,Flat", "IVF4,PQ2,RFlat", "OPQ2,IVF4,PQ2,Refine(SQfp16)"])
def test_the_inverted_file_is_found_below_what_surrounds_it(spec):
    assert specs.inverted_file(specs.make(spec, 4, "dot")).nlist == 4


@pytest.mark.parametrize("spec", ["Flat", "HNSW8", "PQ2", "SQ8"])
def test_other_indexes_have_no_cells(spec):
    assert specs.inverted_file(specs.make(spec, 4, "dot")) is None


@pytest.mark.parametrize("spec", ["PCA2,Flat", "PCAR4,IVF4,Flat", "ITQ4,Flat"])
def test_what_subtracts_the_mean_is_refused_unless_distances_are_asked_for(spec):
    for similarity in ("cosine", "dot"):
        with pytest.raises(MmclError, match="subtracts the mean"):
            specs.make(spec, 4, similarity)
    assert specs.make(spec, 4, "euclidean").d == 4

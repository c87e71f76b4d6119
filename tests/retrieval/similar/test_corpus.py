"""Columns of the rows that vectors are of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmcl
from mmcl.data.sources import open_source
from mmcl.encoding import open_vectors
from mmcl.formats.threshold import keep_threshold
from mmcl.retrieval.similar.corpus import column_of_vectors, encoded, match_threshold
from mmcl.runtime.errors import MmclError

from .conftest import TEXTS, encoder_of


def test_a_column_is_looked_up_by_id_in_the_rows_that_were_encoded(encoder, tmp_path):
    ids = [f"t{number}" for number in range(len(TEXTS))]
    likes = [None if number == 4 else number for number in range(len(TEXTS))]
    pq.write_table(pa.table({"id": ids, "text": TEXTS, "likes": likes}), tmp_path / "texts.parquet")
    rows = open_source(tmp_path / "texts.parquet")
    vectors = encoded(encoder, rows, None, tmp_path / "vectors")
    np.testing.assert_array_equal(column_of_vectors(vectors, "likes"), [np.nan if n is None else n for n in likes])
    assert column_of_vectors(vectors, "text", rows.select(range(len(TEXTS))[::-1])).tolist() == TEXTS
    with pytest.raises(MmclError, match="no row has the id 't10' of a vector; name the rows with --rows"):
        column_of_vectors(vectors, "likes", rows.select(range(10)))
    with pytest.raises(MmclError, match="no column 'hates'"):
        column_of_vectors(vectors, "hates")
    (tmp_path / "texts.parquet").unlink()
    with pytest.raises(MmclError, match=r"texts\.parquet: no such file"):
        column_of_vectors(vectors, "likes")


def test_a_column_beside_the_vectors_is_taken_first(clustered, tmp_path):
    table = pa.table({"id": range(300), "vector": list(clustered), "likes": range(300, 600)})
    pq.write_table(table, tmp_path / "vectors.parquet")
    vectors = open_vectors(tmp_path / "vectors.parquet")
    assert column_of_vectors(vectors, "likes").tolist() == list(range(300, 600))
    with pytest.raises(MmclError, match="does not say which rows it is of; name them with --rows"):
        column_of_vectors(vectors, "hates")


def test_vectors_that_name_no_model_have_no_measured_threshold(tmp_path, monkeypatch, caplog):
    encoder = encoder_of()
    caplog.set_level("INFO", logger="mmcl")
    encoder.save(tmp_path / "model")
    cut = {"asked": None, "threshold": 0.7, "reason": None, "precision": 1.0, "recall": 1.0}
    cut["intervals"] = {"precision": [0.9, 1.0], "recall": [0.9, 1.0]}
    keep_threshold(
        tmp_path / "model", "text-text", {"cuts": [cut], "calibration": None, "encoder": encoder.fingerprint()}
    )
    np.save(tmp_path / "others.npy", np.eye(3, dtype="float32"))
    monkeypatch.chdir(tmp_path / "model")
    assert match_threshold(open_vectors(tmp_path / "others.npy")) == 0.95
    assert "does not say which model its vectors are of" in caplog.text


def test_the_threshold_is_the_one_measured_for_the_model_of_the_vectors(encoder, tmp_path, caplog):
    caplog.set_level("INFO", logger="mmcl")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")
    encoder.save(tmp_path / "model")
    vectors = encoded(
        mmcl.load(tmp_path / "model"), open_source(tmp_path / "texts.parquet"), None, tmp_path / "vectors"
    )
    assert match_threshold(vectors) == 0.95
    assert "no match threshold is kept there" in caplog.text
    with pytest.raises(MmclError, match="no match threshold is kept there"):
        match_threshold(vectors, 0.9)
    cuts = [
        {"asked": asked, "threshold": threshold, "reason": "too few pairs", "precision": 1.0, "recall": 1.0,
         "intervals": {"precision": [0.9, 1.0], "recall": [0.9, 1.0]}}
        for asked, threshold in ((None, 0.7), (0.9, 0.8), (0.99, None))
    ]  # fmt: skip
    measured = {"cuts": cuts, "calibration": None, "encoder": vectors.encoder}
    keep_threshold(tmp_path / "model", "text-text", measured)
    assert match_threshold(vectors) == match_threshold(vectors, 0.9) == 0.8
    with pytest.raises(MmclError, match="too few pairs"):
        match_threshold(vectors, 0.99)
    keep_threshold(tmp_path / "model", "text-text", measured | {"encoder": {"weights": "others", "prompt": ""}})
    assert match_threshold(vectors) == 0.95
    with pytest.raises(MmclError, match="of other weights than the vectors"):
        match_threshold(vectors, 0.9)

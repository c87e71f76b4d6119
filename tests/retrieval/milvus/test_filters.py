"""Conditions that Milvus evaluates: the rows that pyarrow finds for the same condition."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pymilvus")

from mmcl.encoding.corpora.stored import id_table
from mmcl.retrieval.filters import matching
from mmcl.retrieval.metadata import with_columns
from mmcl.retrieval.milvus.filters import expression
from mmcl.retrieval.milvus.index import MilvusIndex
from mmcl.runtime.errors import MmclError

COUNT = 60
TEXTS = ["red", 'a "quoted" one', "it's", "back\\slash", "50% off", "under_score", "new\nline", "", None]
COLUMNS = {
    "price": [None if n % 7 == 0 else n / 4 for n in range(COUNT)],
    "stock": [None if n % 11 == 0 else n % 10 - 3 for n in range(COUNT)],
    "name": [TEXTS[n % len(TEXTS)] for n in range(COUNT)],
    "tags": [None if n % 5 == 0 else [f"t{i}" for i in range(n % 4)] for n in range(COUNT)],
    "sizes": [[n % 3, n % 5] for n in range(COUNT)],
    "added": [None if n % 13 == 0 else datetime(2024, 1, 1 + n % 28, n % 24, tzinfo=UTC) for n in range(COUNT)],
    "new": [None if n % 17 == 0 else n % 2 == 0 for n in range(COUNT)],
    "empty": [None] * COUNT,
}
TABLE = with_columns(id_table(list(range(COUNT)), COUNT), COLUMNS)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    vectors = np.random.default_rng(0).normal(size=(COUNT, 4))
    uri = str(tmp_path_factory.mktemp("milvus") / "milvus.db")
    return MilvusIndex.build(vectors, spec="FLAT", columns=COLUMNS, uri=uri, show_progress=False)


def found(index, where):
    return sorted(index.search(np.ones(4), COUNT, where=where)[0].ravel().tolist())


def numbers(kind):
    return kind.map(lambda value: repr(value) if isinstance(value, int) else f"{value:.2f}")


texts = st.sampled_from(
    ["red", 'a "quoted" one', "it''s", "back\\slash", "50% off", "under_score", "new\nline", "", "z"]
)
signs = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
number = numbers(st.integers(-4, 12) | st.sampled_from([0.25, 3.5, 3.0, -1.0]))
comparisons = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["price", "stock", "id"]), signs, number),
    st.builds("{} in ({}, {})".format, st.sampled_from(["price", "stock"]), number, number),
    st.builds("{} not between {} and {}".format, st.sampled_from(["price", "stock"]), number, number),
    st.builds("name {} '{}'".format, signs, texts),
    st.builds("name in ('{}', '{}')".format, texts, texts),
    st.builds("name like '{}'".format, st.sampled_from(["%e%", "r_d", "50\\% off", "%", "under\\_%", ""])),
    st.builds("name contains '{}'".format, st.sampled_from(["e", "%", "_", "\\", "''", '"', "x"])),
    st.builds("tags contains 't{}'".format, st.integers(0, 4)),
    st.builds("sizes contains {}".format, st.sampled_from(["1", "4", "2.0", "1.5"])),
    st.builds("added {} '2024-01-{:02d}T12:00'".format, signs, st.integers(1, 28)),
    st.builds("new {} {}".format, st.sampled_from(["=", "!="]), st.sampled_from(["true", "false"])),
    st.sampled_from(["new", "not new", "tags is null", "name is not null", "empty is null", "empty = 'x'"]),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or"]), inner),
    ),
    max_leaves=5,
)


@given(where=conditions)
@settings(max_examples=150, deadline=None)
def test_milvus_finds_the_rows_that_pyarrow_finds(index, where):
    if re.search(r"(tags|sizes) contains", where) and re.search(r"like '[^']*\\|name contains '[%_\\]", where):
        with pytest.raises(MmclError, match="Milvus Lite cannot look for"):
            found(index, where)
    else:
        assert found(index, where) == np.flatnonzero(matching(TABLE, where)).tolist(), where


def test_an_expression_is_readable():
    schema = pa.schema([("price", pa.float64()), ("name", pa.large_string())])
    fields = {"price": "price", "name": "column_1"}
    assert expression("price < 5 and not name = 'x'", schema, fields) == (
        '((price is not null and (price < 5.0)) and (column_1 is not null and not (column_1 == "x")))'
    )

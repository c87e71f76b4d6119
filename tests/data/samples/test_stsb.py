import pyarrow.parquet as pq
import pytest

from mmcl.data import samples
from mmcl.data.samples import stsb


def test_quotes_are_text_and_extra_fields_are_ignored():
    text = 'a\tb\tc\t1\t3.800\tHe said "no.\tSay "no".\nd\te\tf\t2\t0\tOne.\tTwo.\tsource\tsource\n'
    assert stsb.parse(text).to_pylist() == [
        {"sentence1": 'He said "no.', "sentence2": 'Say "no".', "score": pytest.approx(3.8)},
        {"sentence1": "One.", "sentence2": "Two.", "score": 0.0},
    ]


def test_the_benchmark_is_complete():
    try:
        folder = samples.get("stsb")
    except samples.UnreachableError as error:
        pytest.skip(str(error))
    tables = {split: pq.read_table(folder / f"{split}.parquet") for split in ("train", "dev", "test")}
    assert {split: table.num_rows for split, table in tables.items()} == {"train": 5749, "dev": 1500, "test": 1379}
    for table in tables.values():
        scores = table["score"].to_pylist()
        assert min(scores) == 0
        assert max(scores) == 5
        assert all(s.strip() for column in ("sentence1", "sentence2") for s in table[column].to_pylist())

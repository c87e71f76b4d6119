from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from mmcl.retrieval import lookup
from mmcl.retrieval.lookup import IdLookup
from mmcl.retrieval.metadata import Metadata

IDS = {
    "integers": [7, -3, 7, 2**62, 0, -(2**62), 7, 12, -3],
    "sorted": [0, 1, 2, 3, 3, 3, 4],
    "one": [5],
    "alike": [4] * 6,
    "strings": ["b", "", "ä", "b", "aa", "a", "\U0001f600", "b", "zz", "a"],
}
OTHERS = {"int": [1, -1, 6, 2**63 - 1, -(2**63)], "str": ["c", "a\0", "aaa", "zzz", "é", "￿"]}


def column(ids):
    return pa.array(ids, pa.large_string() if isinstance(ids[0], str) else pa.int64())


@pytest.mark.parametrize("scans", [0, 32])
@pytest.mark.parametrize("name", IDS)
def test_all_positions_of_ids_are_found_sorted(name, scans, monkeypatch):
    monkeypatch.setattr(lookup, "_SCANS", scans)
    ids, rng = IDS[name], np.random.default_rng(0)
    known, others = sorted(set(ids)), OTHERS[type(ids[0]).__name__]
    found = IdLookup(column(ids))
    asked = [[], known, others, known + others + known]
    asked += [[known[place] for place in rng.integers(0, len(known), 3)] for _ in range(4)]
    for wanted in asked:
        expected = [position for position, id_ in enumerate(ids) if id_ in wanted]
        assert found.every(pa.array(wanted, column(ids).type)).tolist() == expected, wanted


@pytest.mark.parametrize("kind", ["int", "str"])
def test_a_lookup_is_the_same_after_the_ids_were_sorted(kind):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 4_000, 10_000)
    made = pa.array(ids if kind == "int" else [f"photo-{number}" for number in ids])
    found = IdLookup(column(made.to_pylist()))
    wanted = [column(made.take(pa.array(rng.integers(0, 10_000, 20))).to_pylist()) for _ in range(lookup._SCANS)]
    by_scan = [found.every(some).tolist() for some in wanted]
    assert found._order is None
    with ThreadPoolExecutor(4) as pool:  # as a server's threads
        assert [some.tolist() for some in pool.map(found.every, wanted)] == by_scan
    assert found._order is not None
    assert found._order.nbytes == 4 * len(ids)


@pytest.mark.parametrize("scans", [0, 32])
def test_what_is_removed_is_not_found_and_what_is_added_is(scans, monkeypatch):
    monkeypatch.setattr(lookup, "_SCANS", scans)
    rng = np.random.default_rng(2)
    ids = [str(number) for number in rng.integers(0, 40, 100)]
    metadata = Metadata(pa.table({"id": column(ids)}))
    live = list(enumerate(ids))
    for step in range(5):
        gone = metadata.every([str(4 * step), str(4 * step + 1), "none"])
        assert gone.tolist() == [place for place, id_ in live if id_ in (str(4 * step), str(4 * step + 1))]
        metadata = metadata.marked(gone)
        metadata = metadata.added(pa.table({"id": column([str(4 * step), "new"])}))
        live = [(place, id_) for place, id_ in live if place not in gone]
        ids += [str(4 * step), "new"]
        live += [(len(ids) - 2, str(4 * step)), (len(ids) - 1, "new")]
        wanted = ["new", *map(str, range(42)), "new"]
        first = [next((place for place, id_ in live if id_ == of), -1) for of in wanted]
        assert metadata.positions(wanted).tolist() == first
        assert metadata.every(wanted).tolist() == [place for place, _ in live]

"""What is said of vectors, and what is found when all are read."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.encoding.vector_files.examine import info, verify
from mmcl.runtime.errors import MmclError

ROWS = np.random.default_rng(0).normal(size=(25, 8)).astype("float32")
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lengths_and_repeated_ids_are_counted(tmp_path, dtype):
    rows = UNIT.copy()
    rows[3] *= 2
    rows[4] = 0
    ids = [*range(20), 0, 1, 1, 22, 23]
    with VectorWriter(tmp_path, dim=8, model="m", dtype=dtype, shard_rows=10) as writer:
        for start in range(0, 25, 5):
            writer.append(ids[start : start + 5], rows[start : start + 5])
    found = verify(open_vectors(tmp_path))
    assert (found["vectors"], found["unit"], found["zero"], found["duplicates"]) == (25, 23, 1, 3)
    assert sorted(found["examples"]) == [0, 1]


def test_nan_and_damage_are_found(tmp_path):
    rows = UNIT.copy()
    rows[17, 0] = np.inf
    np.save(tmp_path / "v.npy", rows)
    with pytest.raises(MmclError, match="the vector of id 17 holds NaN or infinity"):
        verify(open_vectors(tmp_path / "v.npy"))
    with VectorWriter(tmp_path / "v", dim=8, model="m") as writer:
        writer.append(range(25), UNIT)
    shard = next((tmp_path / "v").glob("*.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(MmclError, match="damaged"):
        verify(open_vectors(tmp_path / "v"))


def test_what_is_known_is_said_without_reading_vectors(tmp_path):
    with VectorWriter(tmp_path / "v", dim=8, model="m", encoder={"weights": "ab", "prompt": ""}) as writer:
        writer.append(range(25), UNIT)
    about = info(open_vectors(tmp_path / "v"))
    assert (about["vectors"], about["dim"], about["model"], about["encoder"]["weights"]) == (25, 8, "m", "ab")
    assert about["bytes"] == sum(path.stat().st_size for path in (tmp_path / "v").iterdir())
    np.save(tmp_path / "v.npy", ROWS)
    about = info(open_vectors(tmp_path / "v.npy"))
    assert (about["vectors"], about["model"], about["bytes"]) == (25, None, (tmp_path / "v.npy").stat().st_size)

"""two_tower on several processes learns what it learns on one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.config.load import load_config, to_yaml

from .processes import TRAIN, launch
from .test_distributed import same_run


@pytest.mark.parametrize(
    ("processes", "exchange", "frequency"),
    [(2, "gather", "batches"), pytest.param(4, "ring", "rows", marks=pytest.mark.slow)],
)
def test_several_processes_learn_what_one_does(tmp_path, processes, exchange, frequency):
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        rows = [
            {"user_id": user, "history": rng.choice(20, 3).tolist(), "item_id": int(item), "price": float(item)}
            for user in range(30)
            for item in rng.choice(20, 4, replace=False)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    config = {
        "method": {"name": "two_tower", "frequency": {"source": frequency, "buckets": 64, "rate": 0.1}},
        "data": {"train": {"source": str(tmp_path / "train.parquet")}},
        "model": {
            "dim": 8,
            "towers": {
                "user": {"modality": "table", "fields": {"history": {"kind": "category", "width": 8, "dropout": 0.3}}},
                "item": {"modality": "table", "fields": {"item_id": "category", "price": "number"}},
            },
        },
        "training": {
            "epochs": 3,
            "batch_size": 24,
            "lr": 0.01,
            "log_every": 1,
            "exchange": exchange,
            "precision": "float32",
        },
        "evaluation": {"sources": {"test": {"task": "recommendation", "source": str(tmp_path / "test.parquet")}}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config(config)))
    launch(TRAIN, path, tmp_path / "one", processes=1)
    launch(TRAIN, path, tmp_path / "several", processes=processes)
    lines = same_run(tmp_path / "one", tmp_path / "several")
    assert "test/user_to_item/ndcg@10" in lines[-1]["evaluation"]

"""A cache that the tests of sources share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _tables(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path_factory.getbasetemp() / "sources-cache"))

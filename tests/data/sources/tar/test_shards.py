"""Tar shards: which there are, what is in them, and what happens when they are damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from mmcl.data.sources.tar import remote
from mmcl.data.sources.tar import shards as module
from mmcl.data.sources.tar.count import count_samples
from mmcl.data.sources.tar.names import shard_name
from mmcl.data.sources.tar.read import Reachable, ShardError, read_shard
from mmcl.data.sources.tar.shards import is_shards, list_shards
from mmcl.data.sources.tar.write import write_shards
from mmcl.runtime.errors import MmclError


def rows(count, size=700):
    return [{"__key__": f"s{n:03d}", "jpg": bytes([n % 256]) * (size + n), "txt": f"caption {n}"} for n in range(count)]


def contents(shard, wanted=None):
    return {s.key: {e: s.read(e) for e in s.files if wanted is None or e in wanted} for s in read_shard(shard, wanted)}


def by_tarfile(path):
    """An independent reading: every file by `tarfile`, grouped by its key."""
    found = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg() and "." in member.name and not member.name.startswith("__"):
                folder, _, name = member.name.rpartition("/")
                key, extension = name.split(".", 1)
                key = f"{folder}/{key}" if folder else key
                found.setdefault(key, {})[extension.lower()] = tar.extractfile(member).read()
    return found


def add(tar, name, data=b"x", **header):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in header.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_that_tarfile_and_webdataset_find(tmp_path, form):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        add(tar, "__index__/about.json")
        add(tar, "folder", b"", type=tarfile.DIRTYPE)
        for number in range(20):
            key = f"folder/{'long' * 20}/{number}" if form != tarfile.USTAR_FORMAT else f"folder/{number}"
            add(tar, f"{key}.JPG", bytes(number))
            add(tar, f"{key}.seg.png", b"s" * 1000)
            add(tar, f"{key}.txt", "größer".encode())
            add(tar, "link", b"", type=tarfile.SYMTYPE, linkname="elsewhere")
        add(tar, "no_extension")
    expected = by_tarfile(path)
    assert contents(str(path)) == expected
    from webdataset import WebDataset

    theirs = {s["__key__"]: s for s in WebDataset(str(path), shardshuffle=False)}
    assert list(theirs) == list(expected)
    for key, files in expected.items():
        assert {e: v for e, v in theirs[key].items() if not e.startswith("__")} == files


def test_streams_hold_what_is_wanted_and_give_what_files_give(tmp_path):
    (path,) = write_shards(rows(30), tmp_path, per_shard=30)
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    plain = contents(str(path))
    assert plain == by_tarfile(path)
    assert contents(str(packed)) == plain
    assert contents(f"pipe:cat {path}") == plain
    some = list(read_shard(f"pipe:cat {path}", wanted={"txt"}))
    assert [sample.files["jpg"] for sample in some] == [None] * 30
    assert [sample.read("txt").decode() for sample in some] == [f"caption {n}" for n in range(30)]


@pytest.mark.parametrize("where", ["file", "pipe"])
@pytest.mark.parametrize(("cut", "complete"), [(4096, 2), (3000, 1), (3072 + 100, 1), (2048 + 200, 1), (512, 0)])
def test_a_truncated_shard_gives_what_is_complete_and_says_where_it_ends(tmp_path, where, cut, complete):
    (path,) = write_shards(rows(3, size=1), tmp_path)  # a header and a block for each file: 2048 bytes a sample
    path.write_bytes(path.read_bytes()[:cut])
    shard = str(path) if where == "file" else f"pipe:cat {path}"
    found = []
    with pytest.raises(ShardError) as error:
        found.extend(read_shard(shard))
    keys = [sample.key for sample in found if "txt" in sample.files]
    assert keys == [f"s{n:03d}" for n in range(complete)]
    assert error.value.name.startswith("00000.tar")


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path):
    (path,) = write_shards(rows(6, size=1), tmp_path)
    data = bytearray(path.read_bytes())
    data[2048 * 3 + 10] ^= 0xFF
    path.write_bytes(data)
    found = []
    with pytest.raises(ShardError, match=r"00000\.tar: bad checksum"):
        found.extend(sample.key for sample in read_shard(str(path)))
    assert found == ["s000", "s001", "s002"]
    assert count_samples([str(path)]) == 3


@pytest.mark.parametrize("shard", ["pipe:exit 3", "pipe:cat nothing_there.tar 2>/dev/null", "gone.tar"])
def test_a_shard_that_cannot_be_opened_is_an_error_and_not_empty(shard):
    with pytest.raises(ShardError):
        list(read_shard(shard))


def test_a_command_that_fails_after_a_complete_tar_is_an_error(tmp_path):
    (path,) = write_shards(rows(3), tmp_path)
    found = []
    with pytest.raises(ShardError, match="exit 7"):
        found.extend(sample.key for sample in read_shard(f"pipe:cat {path}; sleep 0.1; exit 7"))


def test_a_shard_is_called_by_its_file():
    assert shard_name("/data/train/0001.tar") == "0001.tar"
    assert shard_name("https://host/train/0001.tar?token=secret#x") == "0001.tar"
    assert shard_name("pipe:curl -s 'https://host/train/0001.tar' | cat") == "0001.tar"
    a, b = shard_name("pipe:make 1"), shard_name("pipe:make 2")
    assert a != b
    assert a.startswith("pipe-")


def test_sources_are_compared_with_tables_and_expanded(tmp_path, monkeypatch):
    paths = write_shards(rows(5), tmp_path / "shards", per_shard=1)
    folder = paths[0].parent
    names = [str(path) for path in paths]
    assert is_shards(folder)
    assert list_shards(folder) == names
    assert list_shards(f"{folder}/{{00000..00004}}.tar") == names
    assert list_shards(f"{folder}/0000{{0,3}}.tar::file:{folder}/00001.tar") == [names[0], names[3], names[1]]
    remote = "https://example.org/{00..11}.tar::s3://bucket/x.tar::pipe:cat y{1..2}.tar"
    assert is_shards(remote)
    monkeypatch.setattr(module, "_pipes_allowed", True)
    assert len(list_shards(remote)) == 15
    for other in ("sample:shapes", "rows.csv", "user/name", "user/name:config", str(tmp_path)):
        assert not is_shards(other)
    with pytest.raises(MmclError, match=r"no shard .*00005\.tar \(2 of 7 are missing\)"):
        list_shards(f"{folder}/{{00000..00006}}.tar")
    with pytest.raises(MmclError, match=r"[Uu]nbalanced"):
        list_shards(f"{folder}/{{00000.tar")


@pytest.mark.parametrize("name", ["a{0..1}.tar", "a[1].tar", "a::b.tar", "a*.tar", "a{.tar"])
def test_a_shard_that_exists_is_that_shard(tmp_path, name):
    for other in ("a0.tar", "a1.tar", "a"):
        (tmp_path / other).write_bytes(b"")
    (tmp_path / name).write_bytes(b"")
    assert is_shards(tmp_path / name)
    assert list_shards(tmp_path / name) == [str(tmp_path / name)]
    (tmp_path / "folder.tar").mkdir()
    assert not is_shards(tmp_path / "folder.tar")


def test_counts_are_kept_until_a_shard_changes(tmp_path, monkeypatch):
    import mmcl.data.sources.tar.count as module

    shards = [str(path) for path in write_shards(rows(25), tmp_path, per_shard=10)]
    read = []
    monkeypatch.setattr(
        module, "read_shard", lambda shard, wanted=None: read.append(shard) or read_shard(shard, wanted)
    )
    assert count_samples(shards) == 25
    assert count_samples(shards) == 25
    assert sorted(read) == shards
    write_shards(rows(7), tmp_path)
    assert count_samples(shards) == 7 + 10 + 5
    assert read[3:] == [shards[0]]
    with pytest.raises(MmclError, match=r"data\.train\.samples"):
        count_samples([*shards, "https://example.org/a.tar"])


def test_written_shards_are_the_same_bytes_every_time(tmp_path):
    image = tmp_path / "p.jpg"
    image.write_bytes(b"image")
    samples = [{"jpg": image, "json": {"caption": "größer"}, "cls": 3} for _ in range(3)]
    a, b = (write_shards(samples, tmp_path / name, per_shard=2) for name in "ab")
    assert [path.name for path in a] == ["00000.tar", "00001.tar"]
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]
    assert by_tarfile(a[1]) == {"000000002": {"jpg": b"image", "json": '{"caption": "größer"}'.encode(), "cls": b"3"}}


def test_a_path_under_an_extension_of_images_is_read_and_a_text_is_not(tmp_path):
    image = tmp_path / "image.jpg"
    image.write_bytes(b"pixels")
    (shard,) = write_shards([{"jpg": str(image), "txt": str(image)}], tmp_path / "shards")
    (sample,) = read_shard(str(shard))
    assert sample.read("jpg") == b"pixels"
    assert sample.read("txt") == str(image).encode()


@pytest.mark.parametrize("source", ["pipe:cat x.tar", "PIPE:touch x", "a.tar::pipe:touch x", "pipe:{cat,tac} x"])
def test_commands_are_listed_only_where_they_are_allowed(source, monkeypatch, caplog):
    assert is_shards(source)
    with pytest.raises(MmclError, match="--allow-pipe"):
        list_shards(source)
    monkeypatch.setattr(module, "_pipes_allowed", False)  # whatever is called next is undone
    module.allow_pipes()
    if not source.startswith("a.tar"):
        list_shards(source)
        assert "shell commands are run" in caplog.text


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/'; touch {0}; '.tar", "http://127.0.0.1:9/$(touch {0}).tar"])
def test_no_address_reaches_a_shell(address, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    shard = address.format(tmp_path / "written")
    with pytest.raises(ShardError, match=r"curl: exit \d+ \(curl: .*\)"):
        list(read_shard(shard))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("source", ["htgs://x/y.tar", "foo://x/y.tar", "gopen://x"])
def test_addresses_that_nothing_reads_are_refused(source):
    with pytest.raises(MmclError, match=r"are read from files and from .*https://.*s3://"):
        list_shards(source)


def test_an_address_on_the_hub_that_is_none_is_refused():
    with pytest.raises(MmclError, match=r"hf://a/b;c/x\.tar: .*Invalid"):
        list_shards("hf://a/b;c/x.tar")


def test_a_program_that_is_missing_or_silent_ends_the_shard(monkeypatch):
    monkeypatch.setattr(remote, "_PROGRAMS", {"s3": ("no_such_program", "{shard}"), "gs": ("sleep", "30")})
    monkeypatch.setattr(remote, "_SILENCE", 0.05)
    with pytest.raises(ShardError, match="no_such_program is not installed, which reads s3://"):
        list(read_shard("s3://bucket/a.tar"))
    with pytest.raises(ShardError, match="nothing came for"):
        list(read_shard("gs://bucket/a.tar"))


def test_three_unreachable_shards_at_the_start_are_enough():
    reachable, error = Reachable(), ShardError("a.tar", "refused")
    for _ in range(5):
        reachable.failed("a.tar", error)  # a local one
    reachable.failed("s3://b/a.tar", error)
    reachable.failed("s3://b/a.tar", error)
    with pytest.raises(MmclError, match=r"a\.tar: refused; the first 3 shards cannot be read"):
        reachable.failed("s3://b/a.tar", error)
    reachable = Reachable()
    reachable.read()
    for _ in range(5):
        reachable.failed("s3://b/a.tar", error)


def make_tar(path, names):
    with tarfile.open(path, "w") as tar:
        for name in names:
            add(tar, name, name.encode())
    return str(path)


def test_of_a_doubled_key_nothing_is_read_and_nothing_is_lost_in_silence(tmp_path):
    shard = make_tar(tmp_path / "a.tar", ["a.jpg", "a.txt", "b.jpg", "b.txt", "b.jpg", "b.txt", "c.txt"])
    samples = list(read_shard(shard))
    assert [sample.key for sample in samples] == ["a", "b", "c"]
    assert [sample.read("txt") for sample in (samples[0], samples[2])] == [b"a.txt", b"c.txt"]
    with pytest.raises(ShardError, match=r"a\.tar:b: two files '(jpg|txt)' with this key"):
        samples[1].read("txt")


def test_files_of_a_key_that_stand_apart_are_marked(tmp_path):
    shard = make_tar(tmp_path / "a.tar", ["a.jpg", "b.jpg", "a.txt", "b.txt", "c.jpg"])
    assert [sample.apart for sample in read_shard(shard)] == [False, False, True, True, False]


def test_a_folder_gives_all_of_its_tars_and_none_that_is_hidden(tmp_path):
    for name in ("a.tar", "b.TAR", "c.tar.gz", "._a.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [Path(shard).name for shard in list_shards(tmp_path)] == ["a.tar", "b.TAR", "c.tar.gz"]
    for name in ("a.tar", "b.TAR"):
        (tmp_path / name).unlink()
    assert not is_shards(tmp_path)  # a compressed tar beside other files is a backup
    (tmp_path / "notes.txt").unlink()
    assert is_shards(tmp_path)
    (tmp_path / "d.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MmclError, match=r"no shard .*d\.tar \(1 of 2"):
        list_shards(tmp_path)


def test_shards_are_named_by_urls_and_behind_a_tilde_that_is_no_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~a b.tar").write_bytes(b"")
    assert list_shards("~a b.tar") == ["~a b.tar"]
    assert list_shards((tmp_path / "~a b.tar").as_uri()) == [str(tmp_path / "~a b.tar")]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compression_is_known_by_the_bytes_and_not_by_the_name(tmp_path, name, mode):
    with tarfile.open(tmp_path / name, mode) as tar:
        add(tar, "k.txt")
    assert is_shards(tmp_path / name)
    assert contents(str(tmp_path / name)) == by_tarfile(tmp_path / name)


def test_a_sample_whose_name_is_no_utf_8_has_an_id_that_can_be_written(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "caf\xe9.txt")
    assert [sample.name for sample in read_shard(str(tmp_path / "a.tar"))] == ["a.tar:caf\\xe9"]

"""Files and folders that are replaced in one step, and what is written to instead."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading

import pytest

import mmcl
from mmcl.encoding import open_vectors
from mmcl.retrieval import Index
from mmcl.runtime import files
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path, atomic_file, atomic_folder, cache_dir, existing_file, write_json

DEAD = 2**22 + 1  # above the kernel's largest process id


def test_a_symbolic_link_stays_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "dangling").symlink_to("there/new")
    write_json(tmp_path / "link", 1)
    write_json(tmp_path / "dangling", 2)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "1\n"
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "there" / "new").read_text() == "2\n"


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_json(tmp_path / "pipe", {"a": 1})
    reader.join()
    assert json.loads(found[0]) == {"a": 1}
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_is_written_to(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    write_json(tmp_path / "link", 1)
    assert stat.S_ISCHR((tmp_path / "link").stat().st_mode)
    with pytest.raises(OSError, match="No space left"):
        write_json(files.Path("/dev/full"), 1)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_written_to_after_what_was_printed(capfd, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    print("before")
    write_json(files.Path(name), 1)
    assert capfd.readouterr().out == "before\n1\n"
    assert not list(tmp_path.iterdir())


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    write_json(tmp_path / "file", 1)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(MmclError, match="is a folder"), atomic_file(tmp_path):
        raise AssertionError


def test_the_longest_name_can_be_written(tmp_path):
    write_json(tmp_path / ("x" * 255), 1)
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_text_that_is_no_unicode_is_escaped(tmp_path):
    write_json(tmp_path / "file", "caf\udce9")
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == "caf\udce9"


def test_what_ended_processes_left_is_swept_and_what_running_ones_write_is_not(tmp_path):
    for of in (DEAD, os.getppid()):
        (tmp_path / f".destination.{of}.part").mkdir()
        (tmp_path / f".file.{of}.part").touch()
    (tmp_path / f".other.{DEAD}.part").touch()
    with atomic_folder(tmp_path / "destination"), atomic_file(tmp_path / "file") as beside:
        beside.touch()
    left = {f".destination.{os.getppid()}.part", f".file.{os.getppid()}.part", f".other.{DEAD}.part"}
    assert {path.name for path in tmp_path.iterdir()} == {"destination", "file"} | left


def test_a_folder_that_a_killed_process_had_renamed_is_restored(tmp_path):
    old = tmp_path / f".destination.{DEAD}.old"
    old.mkdir()
    (old / "x").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "destination"):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["destination"]
    assert (tmp_path / "destination" / "x").exists()
    old.mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "destination"):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["destination"]


def test_threads_that_write_the_same_folder_do_not_meet(tmp_path):
    with atomic_folder(tmp_path / "destination") as one:
        (one / "x").write_text("one")
        with atomic_folder(tmp_path / "destination") as other:
            (other / "x").write_text("other")
        assert (tmp_path / "destination" / "x").read_text() == "other"
    assert (tmp_path / "destination" / "x").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["destination"]


class Killed(BaseException):
    """Nothing after it runs, as after SIGKILL."""


@pytest.mark.parametrize("swaps", [True, False])
def test_killed_at_any_call_leaves_the_old_folder_or_the_new_one(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(files, "_swap", lambda *_: False)
    real = {(of, name): getattr(of, name) for of, name in [(files.Path, "rename"), (files.shutil, "rmtree")]}
    found = set()
    for moment in range(8):
        destination = tmp_path / str(moment) / "destination"
        destination.mkdir(parents=True)
        (destination / "old").touch()
        calls = 0

        def counted(name, *arguments, moment=moment, **options):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return real[name](*arguments, **options)

        for of, name in real:
            monkeypatch.setattr(of, name, lambda *a, key=(of, name), **o: counted(key, *a, **o))
        try:
            with atomic_folder(destination) as beside:
                (beside / "new").touch()
        except Killed:
            pass
        for (of, name), method in real.items():
            monkeypatch.setattr(of, name, method)
        for path in destination.parent.iterdir():  # as the leavings of another process
            path.rename(path.with_name(path.name.replace(f".{os.getpid()}.", f".{DEAD}.")))
        files._remove_leftovers(destination)
        assert [path.name for path in destination.parent.iterdir()] == ["destination"]
        found.add(tuple(path.name for path in destination.iterdir()))
    assert found == {("old",), ("new",)}


def test_behind_a_link_the_folder_is_replaced_and_keeps_its_permissions(tmp_path):
    (tmp_path / "there").mkdir(mode=0o750)
    (tmp_path / "there" / "old").touch()
    (tmp_path / "link").symlink_to("there")
    with atomic_folder(tmp_path / "link") as beside:
        (beside / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "new").exists()
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o750
    assert {path.name for path in tmp_path.iterdir()} == {"link", "there"}


def test_a_folder_that_cannot_be_replaced_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", "/proc"):
        with pytest.raises(MmclError, match="cannot be replaced"), atomic_folder(files.Path(folder)):
            raise AssertionError


@pytest.mark.parametrize("text", ["x" * 300, "x" * 5_000, "nul\0", "~nobody-of-this-name/x"])
def test_what_can_be_no_path_is_one_short_line(text):
    for use in (as_path, Index.load, open_vectors, mmcl.load):
        with pytest.raises(MmclError, match="path") as error:
            use(text)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["x" * 5_000, "nul\0", "~nobody-of-this-name/x", "", ".", "x\n" * 200])
def test_what_names_no_file_is_none(text):
    assert existing_file(text) is None


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        (None, None, "home/.cache/mmcl"),
        ("", None, "home/.cache/mmcl"),
        ("", "", "home/.cache/mmcl"),
        (None, "relative", "home/.cache/mmcl"),
        (None, "{}/shared", "shared/mmcl"),
        ("~/own", "{}/shared", "home/own"),
        ("{}/own", None, "own"),
    ],
)
def test_the_cache_is_where_the_variables_say_and_an_empty_one_says_nothing(
    own, shared, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("MMCL_CACHE", own), ("XDG_CACHE_HOME", shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.format(tmp_path))
    assert cache_dir("pixels") == tmp_path / expected / "pixels"
    assert (tmp_path / expected / "pixels").is_dir()


def test_a_cache_that_cannot_be_used_is_an_error_that_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(MmclError, match=r"file.*cannot be used \(.*\); set MMCL_CACHE"):
        cache_dir()
    with pytest.raises(MmclError, match="set MMCL_CACHE"):
        cache_dir("pixels")
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "closed"))
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write anywhere
    with pytest.raises(
        MmclError, match=r"closed: the cache folder cannot be used \(Permission denied\); set MMCL_CACHE"
    ):
        cache_dir()
    monkeypatch.setenv("MMCL_CACHE", "~nobody_of_this_name/x")
    with pytest.raises(MmclError, match="there is no home folder; set MMCL_CACHE"):
        cache_dir()


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_full_disk_names_what_was_being_written(tmp_path, writer):
    with pytest.raises(OSError, match="No space left") as caught, writer(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out")
    assert not any(tmp_path.iterdir())

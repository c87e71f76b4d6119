"""One writer a folder."""

from __future__ import annotations

import os
import signal

import pytest

from mmcl.runtime.errors import MmclError
from mmcl.runtime.lock import LOCK, exclusive


def test_a_second_one_is_refused_and_the_first_goes_on(tmp_path):
    folder = tmp_path / "a" / "b"
    with exclusive(folder, "training in") as new:
        assert new
        with pytest.raises(MmclError, match=f"process {os.getpid()} is training in"), exclusive(folder, "x"):
            raise AssertionError
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]
    with exclusive(folder, "training in") as new:
        assert not new


def test_a_folder_left_empty_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "a" / "b", "training in"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "a").exists()


def test_a_killed_process_frees_the_folder_though_its_own_child_lives_on(tmp_path):
    read, write = os.pipe()
    if not (child := os.fork()):
        with exclusive(tmp_path, "training in"):
            if not os.fork():
                os.write(write, str(os.getpid()).encode())
            signal.pause()
    grandchild = int(os.read(read, 20))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        with exclusive(tmp_path, "training in"):
            assert (tmp_path / LOCK).read_text() == f"{os.getpid()} is training in"
            os.kill(grandchild, 0)  # which raises if it has ended
        assert not (tmp_path / LOCK).exists()
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(read)
        os.close(write)

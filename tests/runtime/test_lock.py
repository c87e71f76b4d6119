"""One writer a folder."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from mmcl.runtime.errors import MmclError
from mmcl.runtime.lock import LOCK, claim, exclusive


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


def test_a_claim_has_one_holder_until_it_is_released(tmp_path):
    path = tmp_path / "new" / ".work.claim"
    held = claim(path, "encoding")
    assert held is not None
    assert claim(path, "encoding") is None
    held.release()
    assert not path.exists()
    again = claim(path, "encoding")
    assert again is not None
    again.release()


def test_a_killed_process_gives_up_its_claim(tmp_path):
    read, write = os.pipe()
    if not (child := os.fork()):
        claim(tmp_path / "a", "encoding")
        os.write(write, b"1")
        signal.pause()
    os.read(read, 1)
    assert claim(tmp_path / "a", "encoding") is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert claim(tmp_path / "a", "encoding") is not None
    os.close(read)
    os.close(write)


def test_one_that_waits_comes_after_the_other(tmp_path):
    order, begun = [], threading.Event()

    def second():
        begun.set()
        with exclusive(tmp_path, "opening", wait=True):
            order.append("second")

    waiting = threading.Thread(target=second)
    with exclusive(tmp_path, "opening"):
        waiting.start()
        begun.wait()
        time.sleep(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert not (tmp_path / LOCK).exists()

"""Folders that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_folder
from mmcl.runtime.lock import exclusive


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path):
    target = tmp_path / "target"
    with atomic_folder(target, unless=target / "complete") as late:
        (late / "complete").write_text("late")
        with atomic_folder(tmp_path / "other") as first:
            (first / "complete").write_text("first")
        (tmp_path / "other").rename(target)
    assert (target / "complete").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_that_lacks_the_file_is_replaced(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "part").write_text("half")
    with atomic_folder(target, unless=target / "complete") as new:
        (new / "complete").write_text("new")
    assert [path.name for path in target.iterdir()] == ["complete"]


def _not_folders(tmp_path):
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    return [tmp_path / "file", tmp_path / "pipe", tmp_path / "link", tmp_path / "loop", Path("/dev/null"), Path("-")]


def test_what_is_no_folder_is_not_written_as_one(tmp_path):
    for path in _not_folders(tmp_path):
        for write in (atomic_folder(path), exclusive(path, "writing")):
            with pytest.raises(MmclError, match="folder"), write:
                pass
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "loop", "pipe"]


def test_a_folder_behind_a_link_to_what_is_not_there_yet_is_made(tmp_path):
    (tmp_path / "link").symlink_to("below/real")
    with exclusive(tmp_path / "link", "writing") as missing:
        assert missing
        (tmp_path / "link" / "content").write_text("here")
    assert (tmp_path / "below" / "real" / "content").read_text() == "here"

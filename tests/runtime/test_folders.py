"""Folders that appear whole or not at all."""

from __future__ import annotations

from mmcl.runtime.files import atomic_folder


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path):
    home = tmp_path / "home"
    with atomic_folder(home, unless=home / "whole") as late:
        (late / "whole").write_text("late")
        with atomic_folder(tmp_path / "other") as first:
            (first / "whole").write_text("first")
        (tmp_path / "other").rename(home)
    assert (home / "whole").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_folder_that_lacks_the_file_is_replaced(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "part").write_text("half")
    with atomic_folder(home, unless=home / "whole") as beside:
        (beside / "whole").write_text("new")
    assert [path.name for path in home.iterdir()] == ["whole"]

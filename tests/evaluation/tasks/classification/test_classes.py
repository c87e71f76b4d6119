from __future__ import annotations

import pytest

from mmcl.evaluation.tasks.classification.classes import class_names, class_numbers
from mmcl.runtime.errors import MmclError


def test_imagenet_is_open_clips_thousand() -> None:
    names = class_names("imagenet")
    assert len(names) == 1000
    assert (names[0], names[2], names[999]) == ("tench", "great white shark", "toilet paper")


def test_a_file_counts_from_zero_and_labels_are_numbers_or_names(tmp_path) -> None:
    path = tmp_path / "pets.txt"
    path.write_text("cat\ndog\n 7 \n\n", encoding="utf-8")
    names = class_names(str(path))
    assert names == ["cat", "dog", "7"]
    assert class_numbers(["dog", "0", " cat ", None, "", "7", "2"], names, where="x") == [1, 0, 0, None, None, 2, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "1000"], "t, row 1: class 1000 is out of range; the 1000 classes run from 0 to 999"),
        (["-1"], "class -1 is out of range"),
        (["goldfsh"], "'goldfsh' is none of the 1000 classes; did you mean 'goldfish'"),
        (["missile"], "'missile' is the name of the classes 657 and 744; label the rows with class numbers"),
    ],
)
def test_labels_that_fit_no_class_are_answered_in_one_line(labels: list[str], message: str) -> None:
    with pytest.raises(MmclError, match=message):
        class_numbers(labels, class_names("imagenet"), where="t")


def test_bad_class_files_are_answered_in_one_line(tmp_path) -> None:
    path = tmp_path / "pets.txt"
    path.write_text("cat\n\ndog\n")
    with pytest.raises(MmclError, match="the name of class 1 is blank"):
        class_names(path)
    path.write_text("cat\n")
    with pytest.raises(MmclError, match="1 class names; at least two"):
        class_names(path)
    with pytest.raises(MmclError, match="classes 'imagnet': no such file"):
        class_names("imagnet")

"""The examples run as they are, and come to what they promise."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_own_pairs_finds_images_by_words(run):
    found = run("own_pairs.py")
    assert len(found) == 3
    assert all(line.endswith(".png") for line in found)


def test_sentences_finds_the_question_that_means_the_same(run):
    answer, spearman = run("sentences.py")
    assert answer == "How do I reset my password?"
    assert spearman == "STS-B, Spearman: 82.03"

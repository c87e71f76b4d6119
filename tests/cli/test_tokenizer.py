from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mmcl.cli.app import app
from mmcl.config.model import TextTowerConfig
from mmcl.formats.towers.text import build_text_tower
from mmcl.runtime.errors import MmclError

# A few hundred captions in scripts that share no letter.
SUBJECTS = {
    "ja": ["赤い自転車", "二匹の犬", "海辺の家", "青い空"],
    "ru": ["Красный велосипед", "две собаки", "дом у моря", "синее небо"],
    "ar": ["دراجة حمراء", "كلبان", "بيت على البحر", "سماء زرقاء"],
    "hi": ["लाल साइकिल", "दो कुत्ते", "समुद्र का घर", "नीला आकाश"],
}
CAPTIONS = [f"{a} {b}" for words in SUBJECTS.values() for a in words for b in words]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"text": caption}) + "\n" for caption in CAPTIONS), encoding="utf-8")
    return path


def train(source, out, *options):
    return CliRunner().invoke(app, ["tokenizer", "train", str(source), "--out", str(out), *options])


def test_a_tokenizer_of_any_language_is_trained_and_read_by_a_text_tower(source, tmp_path):
    from transformers import AutoTokenizer

    result = train(source, tmp_path / "tokens", "--vocab-size", "200", "--character-coverage", "1.0")
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokens")
    assert f"{len(tokenizer)} pieces" in result.output
    assert f"{CAPTIONS[0]!r} is read as: ▁赤い" in result.output
    for caption in CAPTIONS:
        ids = tokenizer(caption)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption.casefold()
    settings = TextTowerConfig(width=16, heads=2, layers=1, tokenizer={"name": str(tmp_path / "tokens")})
    processor, _ = build_text_tower(settings)
    assert processor.tokenize(["две собаки"])[0][0].tolist() == tokenizer("две собаки")["input_ids"]


def test_case_can_be_kept(source, tmp_path):
    from transformers import AutoTokenizer

    train(source, tmp_path / "tokens", "--no-lowercase", "--character-coverage", "1.0")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokens")
    assert tokenizer.decode(tokenizer("Красный")["input_ids"], skip_special_tokens=True) == "Красный"


def test_what_is_there_is_not_replaced(source, tmp_path):
    (tmp_path / "tokens").mkdir()
    assert train(source, tmp_path / "tokens").exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir()}
    result = train(source, tmp_path / "tokens", "--no-lowercase")
    assert isinstance(result.exception, MmclError)
    assert "not replaced" in str(result.exception)
    assert {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir()} == before


def test_a_tokenizer_that_is_not_there_is_reported_with_the_setting():
    with pytest.raises(MmclError, match=r"model\.text\.tokenizer\.name: no tokenizer"):
        build_text_tower(TextTowerConfig(tokenizer={"name": "nobody/no-such-tokenizer"}))


def test_frequent_words_are_kept_whole(tmp_path):
    source = tmp_path / "captions.txt"
    source.write_text("a doghouse\na dog in a doghouse\na zebra\n" * 5)
    result = train(source, tmp_path / "tokens", "--words", "3", "--vocab-size", "30")
    assert result.exit_code == 0, result.output
    assert "'a doghouse' is read as: ▁a ▁doghouse" in result.output

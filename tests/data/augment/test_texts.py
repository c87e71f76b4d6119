"""Captions changed at random: special tokens stay, shares are as asked for, and each text has its own draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.config.data import TextAugmentationConfig
from mmcl.data.augment.texts import Synonyms, augment_tokens, framing_of, split_tokens
from mmcl.data.identity import mix
from mmcl.runtime.errors import MmclError

FIRST, LAST = 101, 102
SEEDS = mix(torch.arange(2000), 5)


def framed(words):
    return np.array([FIRST, *words, LAST], dtype=np.int32)


def test_the_defaults_change_nothing():
    texts = [framed(range(5)), framed([])]
    same = augment_tokens(texts, SEEDS[:2], TextAugmentationConfig(), (1, 1))
    assert all(a is b for a, b in zip(texts, same, strict=True))


def test_tokens_are_left_out_with_the_probability_asked_for_and_keep_their_order():
    texts = [framed(range(20))] * len(SEEDS)
    changed = augment_tokens(texts, SEEDS, TextAugmentationConfig(drop=0.3), (1, 1))
    assert all(ids[0] == FIRST and ids[-1] == LAST and ids.dtype == np.int32 for ids in changed)
    assert all((np.diff(ids[1:-1]) > 0).all() for ids in changed)
    left_out = 1 - np.mean([len(ids) - 2 for ids in changed]) / 20
    assert left_out == pytest.approx(0.3, abs=0.01)
    of_each = np.bincount(np.concatenate([ids[1:-1] for ids in changed]), minlength=20) / len(SEEDS)
    assert of_each == pytest.approx(np.full(20, 0.7), abs=0.05)


def test_one_token_always_stays_and_any_of_them_may():
    texts = [framed([7, 8, 9])] * len(SEEDS)
    changed = augment_tokens(texts, SEEDS, TextAugmentationConfig(drop=0.999), (1, 1))
    assert {len(ids) for ids in changed} >= {3}
    assert min(map(len, changed)) == 3
    kept = np.bincount([ids[1] for ids in changed if len(ids) == 3])[7:]
    assert kept / kept.sum() == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    for short in (framed([]), framed([4])):
        assert np.array_equal(augment_tokens([short], SEEDS[:1], TextAugmentationConfig(drop=0.9), (1, 1))[0], short)


def test_a_cut_keeps_a_run_whose_length_and_place_vary():
    texts = [framed(range(10))] * len(SEEDS)
    changed = [ids[1:-1] for ids in augment_tokens(texts, SEEDS, TextAugmentationConfig(crop=0.5), (1, 1))]
    assert all((np.diff(run) == 1).all() for run in changed)
    assert {len(run) for run in changed} == set(range(5, 11))
    assert {int(run[0]) for run in changed if len(run) == 5} == set(range(6))


def test_a_text_is_changed_in_the_same_way_whatever_stands_beside_it():
    texts = [framed(range(n)) for n in (12, 3, 7, 30)]
    config = TextAugmentationConfig(drop=0.4, crop=0.5)
    together = augment_tokens(texts, SEEDS[:4], config, (1, 1))
    alone = [augment_tokens([text], SEEDS[n : n + 1], config, (1, 1))[0] for n, text in enumerate(texts)]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (0, 1), (0, 0), (2, 1), (1, 0)])
def test_the_special_tokens_are_found_by_what_an_empty_text_has(before, after):
    def tokenize(texts):
        words = [[ord(letter) for letter in text] for text in texts]
        return [np.array([900] * before + ids + [901] * after) for ids in words], 0

    assert framing_of(tokenize) == (before, after)


def test_the_framing_of_open_clips_tokenizer_is_one_at_each_end():
    import open_clip

    tokenizer = open_clip.tokenizer.SimpleTokenizer()

    def tokenize(texts):
        return [np.array([tokenizer.sot_token_id, *tokenizer.encode(t), tokenizer.eot_token_id]) for t in texts], 0

    assert framing_of(tokenize) == (1, 1)


@pytest.fixture
def synonyms(tmp_path):
    path = tmp_path / "synonyms.tsv"
    path.write_text("dog\thound\tfour-legged friend\nquick\tfast\n\nalone\nfast\trapid\n")
    return Synonyms(path)


def test_words_become_their_synonyms_with_the_probability_asked_for(synonyms):
    texts = ["A Quick dog, undogged; dog's DOG!"] * len(SEEDS)
    changed = synonyms.swap(texts, SEEDS, 1.0)
    assert set(changed) == {
        f"A Fast {one}, undogged; dog's {other}!"
        for one in ("hound", "four-legged friend")
        for other in ("Hound", "Four-legged friend")
    }
    some = synonyms.swap(texts, SEEDS, 0.3)
    assert np.mean(["Fast" in text for text in some]) == pytest.approx(0.3, abs=0.04)
    assert {text.split()[1] for text in synonyms.swap(["a fast one"] * 50, SEEDS[:50], 1.0)} == {"quick", "rapid"}


def test_a_text_without_a_swap_is_the_same_object_and_seeds_decide_alone(synonyms):
    texts = ["nothing here", "", "the dog is alone"]
    changed = synonyms.swap(texts, SEEDS[:3], 1.0)
    assert [one is other for one, other in zip(texts, changed, strict=True)] == [True, True, False]
    assert synonyms.swap(texts[2:], SEEDS[2:3], 1.0) == changed[2:]
    assert synonyms.swap([], SEEDS[:0], 1.0) == []


def test_a_file_without_synonyms_is_refused(tmp_path):
    with pytest.raises(MmclError, match=r"nowhere\.tsv: cannot be read"):
        Synonyms(tmp_path / "nowhere.tsv")
    (tmp_path / "one.tsv").write_text("dog hound\ncat\n")
    with pytest.raises(MmclError, match=r"no line has two words; .*separated by tabs"):
        Synonyms(tmp_path / "one.tsv")


def test_two_halves_share_no_token_but_special_ones():
    special = torch.tensor([0, FIRST, LAST])
    length = 12
    ids = torch.zeros(len(SEEDS), length + 5, dtype=torch.int64)
    ids[:, : length + 2] = torch.tensor(framed(range(1, length + 1)))
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    halves = [split_tokens(inputs, SEEDS, part, special) for part in (0, 1)]
    rows = [
        [half["input_ids"][row][half["attention_mask"][row] == 1].tolist() for half in halves]
        for row in range(len(SEEDS))
    ]
    for first, second in rows:
        assert (first[0], first[-1], second[0], second[-1]) == (FIRST, LAST, FIRST, LAST)
        assert sorted(first[1:-1] + second[1:-1]) == list(range(1, length + 1))
        assert first[1:-1] == sorted(first[1:-1])
        assert len(first) == len(second)
    together = np.mean([(1 in first) == (2 in first) for first, _ in rows])
    assert together == pytest.approx((length / 2 - 1) / (length - 1), abs=0.04)  # any half is as likely as another


def test_halves_of_odd_and_of_short_texts():
    special = torch.tensor([0, FIRST, LAST])
    ids = torch.tensor([[FIRST, 5, 6, 7, LAST], [FIRST, 5, LAST, 0, 0], [FIRST, LAST, 0, 0, 0]])
    halves = [
        split_tokens({"input_ids": ids, "attention_mask": (ids != 0).long()}, SEEDS[:3], k, special) for k in (0, 1)
    ]
    assert [half["attention_mask"].sum(dim=1).tolist() for half in halves] == [[3, 3, 2], [4, 3, 2]]
    assert all(half["input_ids"][1, 1] == 5 for half in halves)


def test_halves_hang_on_a_texts_own_seed_alone_and_leave_prompts_whole():
    special, ids = torch.tensor([FIRST, LAST]), torch.tensor(framed(range(1, 9))).long().expand(6, 10)
    whole = split_tokens({"input_ids": ids}, SEEDS[:6], 0, special)
    alone = split_tokens({"input_ids": ids[4:5]}, SEEDS[4:5], 0, special)
    assert torch.equal(whole["input_ids"][4:5], alone["input_ids"])
    assert len({tuple(row) for row in whole["input_ids"].tolist()}) > 1
    prompted = split_tokens({"input_ids": ids, "skipped": torch.full((6,), 5)}, SEEDS[:6], 1, special)
    assert (prompted["input_ids"][:, :5] == ids[:, :5]).all()
    assert (prompted["attention_mask"].sum(dim=1) == 8).all()

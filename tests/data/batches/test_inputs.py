"""Batches of texts: taken apart and joined again they are what they were, whatever of them is left out."""

from __future__ import annotations

import pytest
import torch

from mmcl.data.batches.inputs import join_inputs, take_rows, token_counts

PADDING = 9


def texts(lengths, **more):
    """Of so many tokens each: 1, 2, 3, …"""
    places = torch.arange(max(lengths))
    mask = (places < torch.tensor(lengths)[:, None]).long()
    inputs = {"input_ids": torch.where(mask.bool(), places + 1, PADDING)}
    return inputs | ({} if bool(mask.all()) else {"attention_mask": mask}) | more


def same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("lengths", [([2, 5], [3, 1, 1]), ([4, 4], [2, 2]), ([2, 3], [3]), ([4], [4, 4])])
def test_lists_of_texts_are_joined_with_the_padding_and_the_mask_that_they_need(lengths):
    first, second = lengths
    joined = join_inputs([texts(first), texts(second)], PADDING)
    same(joined, texts(first + second))
    assert token_counts(joined).tolist() == first + second
    counts = token_counts(take_rows(joined, slice(len(first), None)))
    assert counts.tolist() == second


def test_rows_lose_the_padding_that_others_needed_and_keep_the_rest():
    inputs = texts([2, 5, 3], skipped=torch.tensor([0, 2, 1]))
    part = take_rows(inputs, torch.tensor([2, 0]))
    assert part["input_ids"].tolist() == [[1, 2, 3], [1, 2, PADDING]]
    assert part["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert part["skipped"].tolist() == [1, 0]
    pixels = torch.arange(6).view(3, 2)
    same(take_rows({"pixels": pixels}, slice(1, 3)), {"pixels": pixels[1:]})
    assert take_rows(inputs, slice(0, 0))["input_ids"].shape[0] == 0
    empty = inputs | {"attention_mask": torch.zeros(3, 5, dtype=torch.int64)}
    assert take_rows(empty, slice(0, 1))["input_ids"].shape == (1, 1)  # towers do not read nothing


def test_what_only_some_lists_have_is_filled_up_for_the_others():
    skipping = texts([3, 2], skipped=torch.tensor([1, 2]))
    assert join_inputs([texts([2]), skipping], PADDING)["skipped"].tolist() == [0, 1, 2]
    features = torch.randn(3, 2)
    same(join_inputs([{"features": features[:1]}, {"features": features[1:]}], PADDING), {"features": features})

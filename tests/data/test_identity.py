"""Hashes that are the same everywhere, and random numbers that belong to a row."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from mmcl.data.identity import mix, stable_hash, uniforms

MASK = 2**64 - 1


def splitmix64(state):
    """Steele, Lea & Flood 2014, in Python's unbounded integers."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, z ^ (z >> 31)


def test_mix_is_splitmix64():
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 1234567]
    expected = [splitmix64(seed & MASK)[1] for seed in seeds]
    assert [value & MASK for value in mix(torch.tensor(seeds)).tolist()] == expected


def test_uniforms_are_the_generators_stream_from_the_row_seed():
    seed = torch.tensor([42])
    state, expected = mix(seed, 3).item() & MASK, []
    for _ in range(5):
        state, value = splitmix64(state)
        expected.append((value >> 40) * 2.0**-24)
    assert uniforms(seed, 5, stream=3)[0].tolist() == expected


def test_a_row_draws_the_same_numbers_whatever_the_batch():
    seeds = mix(torch.arange(100), 7)
    full = uniforms(seeds, 4)
    assert torch.equal(full[30:40], uniforms(seeds[30:40], 4))
    assert torch.equal(full[:, :2], uniforms(seeds, 2))
    assert not torch.equal(full, uniforms(seeds, 4, stream=1))


def test_numbers_are_uniform_and_independent():
    numbers = uniforms(torch.arange(20_000), 3).numpy()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.03


def test_equal_content_has_equal_hashes_in_any_process():
    assert stable_hash("a dog") == stable_hash(b"a dog") == -4081912340589182210
    assert stable_hash("a dog") != stable_hash("a dog ")
    assert stable_hash("\ud800") == stable_hash("\ud800")


@pytest.mark.parametrize("count", [1, 1000])
def test_hashes_fit_a_signed_64_bit_integer(count):
    np.array([stable_hash(str(i)) for i in range(count)], dtype=np.int64)
    assert len({stable_hash(str(i)) for i in range(count)}) == count

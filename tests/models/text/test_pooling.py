"""Pooling, against the plain loop and against sentence-transformers, with padding on either side."""

from __future__ import annotations

import pytest
import torch

from mmcl.models.text.pooling import POOLINGS, pool
from mmcl.runtime.errors import MmclError

THEIRS = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "max": "max",
    "cls": "cls",
    "last": "lasttoken",
}


def padded(side: str, lengths: tuple[int, ...] = (1, 3, 5)):
    """Texts of random states; the (N, L, D) of them with padding on ``side``, and the mask."""
    torch.manual_seed(0)
    texts = [torch.randn(length, 4) - 5 for length in lengths]  # negative: a max over padding would show
    states, mask = torch.full((len(texts), 5, 4), 7.0), torch.zeros(len(texts), 5, dtype=torch.int64)
    for row, tokens in enumerate(texts):
        where = slice(0, len(tokens)) if side == "right" else slice(5 - len(tokens), 5)
        states[row, where], mask[row, where] = tokens, 1
    return texts, states, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", lambda tokens: tokens.mean(0)),
        ("weighted_mean", lambda tokens: sum((i + 1) * t for i, t in enumerate(tokens)) / sum(range(len(tokens) + 1))),
        ("mean_sqrt_len", lambda tokens: tokens.sum(0) / len(tokens) ** 0.5),
        ("max", lambda tokens: tokens.amax(0)),
        ("cls", lambda tokens: tokens[0]),
        ("last", lambda tokens: tokens[-1]),
        ("max+mean", lambda tokens: torch.cat([tokens.amax(0), tokens.mean(0)])),
    ],
)
def test_padding_does_not_matter(how, expected, side):
    texts, states, mask = padded(side)
    torch.testing.assert_close(pool(states, mask, how), torch.stack([expected(tokens) for tokens in texts]))


@pytest.mark.parametrize("how", POOLINGS)
def test_no_mask_is_a_mask_of_ones(how):
    torch.manual_seed(0)
    layers = torch.randn(4, 3, 5, 6).unbind()
    without = pool(layers[-1], None, how, layers=layers)
    masked = pool(layers[-1], torch.ones(3, 5, dtype=torch.int64), how, layers=layers)
    torch.testing.assert_close(without, masked)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", [*THEIRS, "cls+mean", "max+weighted_mean+last"])
@pytest.mark.parametrize("skip", [0, 2])
def test_vectors_equal_sentence_transformers(how, side, skip):
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    texts, states, mask = padded(side, (3, 4, 5))
    theirs = modules.Pooling(4, tuple(THEIRS[name] for name in how.split("+")), include_prompt=not skip)
    features = {"token_embeddings": states, "attention_mask": mask} | ({"prompt_length": skip} if skip else {})
    skipped = torch.full((len(texts),), skip) if skip else None
    torch.testing.assert_close(pool(states, mask, how, skipped=skipped), theirs(features)["sentence_embedding"])


def test_a_prompt_that_is_all_of_a_text_leaves_its_last_token():
    texts, states, mask = padded("right")
    for how in ("mean", "max", "cls", "weighted_mean"):
        pooled = pool(states, mask, how, skipped=torch.full((3,), 9))
        torch.testing.assert_close(pooled, torch.stack([tokens[-1] for tokens in texts]))


def test_two_layers_are_averaged_as_simcse_does():
    _, _, mask = padded("right")
    layers = torch.randn(5, 3, 5, 4).unbind()  # the embeddings, and four transformer layers
    for how, one, other in (("first_last", layers[1], layers[-1]), ("last_two", layers[-2], layers[-1])):
        wanted = ((one + other) / 2 * mask.unsqueeze(-1)).sum(1) / mask.sum(-1).unsqueeze(-1)
        torch.testing.assert_close(pool(layers[-1], mask, how, layers=layers), wanted)


def test_bfloat16_states_are_summed_in_float32():
    torch.manual_seed(0)
    states = torch.randn(2, 300, 4).bfloat16()
    for mask in (None, torch.ones(2, 300, dtype=torch.int64)):
        vectors = pool(states, mask, "mean")
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.double(), states.double().mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["median", "mean+median", ""])
def test_an_unknown_pooling_is_refused(how):
    with pytest.raises(MmclError, match="there is no pooling"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), how)

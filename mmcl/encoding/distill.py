"""Static embeddings of a text encoder: each token of its vocabulary embedded once, a text the mean of its tokens."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.data.augment.texts import framing_of
from mmcl.encoding.encoder import Encoder
from mmcl.encoding.load import load
from mmcl.encoding.text_compute import TextCompute
from mmcl.formats.sentence_transformers.read import Pipeline
from mmcl.formats.sentence_transformers.towers import Wanted, static_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.device import DTYPES
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import progress

_FREE = re.compile(r"[\[<]unused\d+[\]>]")
"""Entries that vocabularies leave to whoever needs some."""


def distill_static(teacher: Encoder | str | Path, dim: int = 256, smoothing: float = 1e-4) -> Encoder:
    """An encoder that gives a text the mean of the vectors that a slower one gives its tokens alone, which takes no
    more than looking them up: model2vec (Tulkens and van Dongen 2024).

    Each token is embedded as a text of its own; the vectors are centred and turned to their ``dim`` principal axes; the
    token of rank r weighs a / (a + p), with p by Zipf's law of its place in the vocabulary, which has frequent tokens
    first (SIF, Arora et al. 2017). Special tokens, and those of unknown words, have zero. It can be trained further as
    any model, by ``model.name`` of a config.

    Args:
        teacher: encoder of texts by a tokenizer of transformers, or what :func:`mmcl.load` takes.
        dim: of the vectors; all of the teacher's if it has fewer.
        smoothing: a of the weights.

    Returns:
        An encoder of texts alone, of any number of tokens, with the teacher's tokenizer; without prompts.

    Raises:
        MmclError: the teacher embeds no texts, or its tokenizer has no Rust backend.
    """
    encoder = teacher if isinstance(teacher, Encoder) else load(teacher)
    embedder = encoder.towers.text()
    tokenizer = copy.deepcopy(embedder.processor.tokenizer)
    used = _used(tokenizer)
    training = encoder.training
    vectors = _principal(_of_each_token(encoder.eval(), embedder, used), dim)
    encoder.train(training)
    rank = torch.arange(2, len(used) + 2)
    frequency = (1 / rank) / (1 / rank).sum()
    table = torch.zeros(len(tokenizer), vectors.shape[1])
    table[used] = vectors * (smoothing / (smoothing + frequency))[:, None]
    pipeline = Pipeline(Path(), "StaticEmbedding", lowercase=embedder.processor.lowercase)
    processor, tower = static_tower(pipeline, tokenizer, table, Wanted(encoder.name))
    embedders = {"text": TextEmbedder(processor, tower, Head.from_layers(tower.width, []))}
    distilled = Encoder(Towers(embedders, tower.width, f"{encoder.name}-static").eval())
    distilled.towers.card = {"distilled": {"teacher": encoder.name, "smoothing": smoothing}}
    return distilled


def _used(tokenizer: Any) -> list[int]:
    """The tokens that are of texts: neither special, among which is that of unknown words, nor left free."""
    special, tokens = set(tokenizer.all_special_ids), tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return [number for number, token in enumerate(tokens) if number not in special and not _FREE.fullmatch(token)]


@torch.inference_mode()
def _of_each_token(encoder: Encoder, embedder: TextEmbedder, used: Sequence[int]) -> Tensor:
    """(n, D) float32 vectors of the texts that are one token each, between the special tokens of any text."""
    processor = embedder.processor
    before, behind = framing_of(lambda texts: processor.tokenize(texts, prompt=""))
    (one,), _ = processor.tokenize(["a"], prompt="")
    frame = np.concatenate([one[:before], one[len(one) - behind :]])
    tokens = [np.insert(frame, before, number).astype(np.int32) for number in used]
    compute = TextCompute(embedder, DTYPES[encoder.compute])
    vectors = torch.empty(len(tokens), embedder.head.dim)
    with progress("distil", len(tokens), "tokens") as advance:
        for batch in compute.batches(np.array([len(ids) for ids in tokens])):
            vectors[torch.from_numpy(batch)] = compute([tokens[place] for place in batch]).cpu()
            advance(len(batch))
    if not bool(vectors.isfinite().all()):
        raise MmclError(f"'{encoder.name}' gives tokens NaN or infinity: its weights are damaged; take a fresh copy")
    return vectors.clone()


def _principal(vectors: Tensor, dim: int) -> Tensor:
    """(V, ``dim``) coordinates of centred vectors along the axes of their greatest variance."""
    centred = (vectors - vectors.mean(dim=0)).double()
    _, axes = torch.linalg.eigh(centred.T @ centred)
    return (centred @ axes.flip(1)[:, :dim]).float()

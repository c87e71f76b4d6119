"""Tiny models as that library saves them, and as this one makes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from mmcl.data.processors.text import TextProcessor
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.text import open_text_tower
from mmcl.models.heads import Head
from mmcl.models.layers import Dense
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers

CORPUS = [f"a {size} {colour} {thing}" for size in ("Big", "small") for colour in ("red", "blue") for thing in ("dog",)]


TEXTS = ["a big red dog", "small", "A BLUE dog and a red one", "", "dog " * 60, "a  small   blue\ndog"]


POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
    "mean+max": ("mean", "max"),
    "cls+mean+last": ("cls", "mean", "lasttoken"),
}


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


KINDS = {
    "bert": ("Bert", {"max_position_embeddings": 40}),
    "roberta": ("Roberta", {"max_position_embeddings": 41, "type_vocab_size": 1}),
    "mpnet": ("MPNet", {"max_position_embeddings": 41}),
    "qwen2": ("Qwen2", {"max_position_embeddings": 40, "num_key_value_heads": 1}),
}


DENSE = [Dense(12, activation="tanh"), Dense(10, bias=False), Dense(8, activation="gelu")]


def byte_pairs():
    """A tokenizer as embedding models made of decoders have it: no token before the text, one behind it."""
    from tokenizers import ByteLevelBPETokenizer, processors

    end = "<|endoftext|>"
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=280, special_tokens=[end])
    trained.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token=end, eos_token=end, padding_side="left"
    )


def theirs(library, folder, **options):
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)


def made_by_them(library, source, modes, *, limit=20, dense=(), normalize=True, lowercase=False, **options):
    """A model as that library's users build it."""
    from sentence_transformers.base.modules import Dense as TheirDense
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    include = options.pop("include_prompt", True)
    torch.manual_seed(1)
    modules = [Transformer(str(source), max_seq_length=limit, do_lower_case=lowercase)]
    modules.append(Pooling(16, modes, include_prompt=include))
    width = 16 * (1 if isinstance(modes, str) else len(modes))
    for layer in dense:
        activation = {"tanh": torch.nn.Tanh, "gelu": torch.nn.GELU, "identity": torch.nn.Identity}[layer.activation]
        modules.append(TheirDense(width, layer.width, layer.bias, activation()))
        width = layer.width
    modules += [Normalize()] if normalize else []
    return library.SentenceTransformer(modules=modules, device="cpu", **options)


def made_here(source, pooling, head=None, **options):
    opened, tower = open_text_tower(str(source))
    processor = TextProcessor(opened.tokenizer, **{"max_tokens": 20, **options})
    tower = TextTower(tower.net, processor, pooling=pooling)
    torch.manual_seed(1)
    head = Head.from_layers(tower.width, head or [])
    encoder = Encoder(
        Towers(
            {"text": TextEmbedder(processor, tower, head)}, head.layers[-1].width if head.layers else tower.width, "m"
        )
    )
    encoder.set_compute("float32")
    return encoder.eval()


def assert_same(ours, others):
    """Unit vectors that agree to the digits that the project promises."""
    np.testing.assert_allclose(ours, others, atol=1e-5)
    np.testing.assert_array_less(1 - 1e-6, (ours * others).sum(axis=1))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(path: Path, values):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(values))

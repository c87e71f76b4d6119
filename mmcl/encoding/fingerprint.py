"""What tells one encoder from another, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mmcl.formats.weights import weights_hash
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.layers import layer_spec
from mmcl.models.table.embedder import TableEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.token_layers import TOKEN_LAYERS
from mmcl.models.towers import Towers


def fingerprint(towers: Towers, weights: str | None = None) -> dict[str, str]:
    """``weights``: a hash of the weights and of what else decides the vectors; ``prompt``: the text that is put before
    every other by default, of several text towers a JSON object of these.

    A device, or the precision that is computed in, is no part of it.

    Args:
        towers: of the model.
        weights: the hash of their weights, where these are no longer in memory.
    """
    described: list[Any] = []
    prompts = {}
    for tower_name in towers.names:
        embedder = towers.embedder(tower_name)
        if isinstance(embedder, ImageEmbedder):
            described += _of_images(tower_name, embedder)
        elif isinstance(embedder, TextEmbedder):
            described += _of_texts(tower_name, embedder)
            prompts[tower_name] = embedder.processor.prompt_text()
        elif isinstance(embedder, TableEmbedder):
            described += [[tower_name, embedder.processor.columns], embedder.processor.cells()]
    content = json.dumps([described, weights or weights_hash(towers.embedders)], sort_keys=True, default=str)
    prompt = next(iter(prompts.values()), "") if len(prompts) < 2 else json.dumps(prompts, sort_keys=True)
    return {"weights": hashlib.sha256(content.encode()).hexdigest()[:32], "prompt": prompt}


def _of_images(name: str, embedder: ImageEmbedder) -> list[Any]:
    processor, tower = embedder.processor, embedder.tower
    settings = {"size": processor.size, "resize": processor.resize}
    return [[name, settings], [tower.mean.flatten().tolist(), tower.std.flatten().tolist()]]


def _of_texts(name: str, embedder: TextEmbedder) -> list[Any]:
    processor, tower = embedder.processor, embedder.tower
    settings = {
        "pooling": tower.pooling,
        "max_tokens": processor.max_tokens,
        "include_prompt": processor.include_prompt,
        "lowercase": processor.lowercase,
        "padded": tower.padding.length,
        "masked": tower.padding.masked,
    }
    if processor.ignored_id is not None:
        settings["ignored_id"] = processor.ignored_id
    if tower.token_layers is not None:
        settings["token_layers"] = [layer_spec(layer, TOKEN_LAYERS) for layer in tower.token_layers.layers]
    return [[name, settings], [processor.tokenizer_key(), ""]]

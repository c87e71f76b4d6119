"""From rows to batches: identities, the choice among captions, further items."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.config import load_config
from mmcl.data.identity import stable_hash
from mmcl.data.sources import open_source
from mmcl.training.build import build_method
from mmcl.training.evaluate import evaluate
from mmcl.training.feed import prefetch
from mmcl.training.table_feed import TableFeed


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def make_feed(folder, rows, shapes_config, extra=None, frozen=False, method=None):
    path = folder / f"rows{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(shapes_config, [f"data.train.source={path}", "data.train.split=null", "data.image.size=32"])
    method = method or build_method(config, open_source(path), path.with_suffix(""))
    method.encoder.embedder("text").frozen = frozen
    feed = TableFeed(
        [config.data.train],
        method.inputs,
        config,
        method.encoder.eval(),
        folder,
        extra=extra or {},
        augmented=False,
        device=torch.device("cpu"),
    )
    return feed, method


def test_every_caption_of_a_row_is_chosen_in_some_epoch_and_the_choice_belongs_to_row_and_epoch(
    pictures, shapes_config
):
    captions = [[f"{n} {word}" for word in ("one", "two", "three")] for n in range(6)]
    rows = [{"image": f"{n}.png", "text": texts} for n, texts in enumerate(captions)]
    feed, _ = make_feed(pictures, rows, shapes_config)
    seen = [set() for _ in rows]
    for epoch in range(30):
        batch = feed.batch(np.arange(6), 0, epoch)
        for row, identity in enumerate(batch.ids[:, 1].tolist()):
            seen[row].add(identity)
        part = feed.batch(np.array([4, 1]), 0, epoch)
        assert torch.equal(part.ids, batch.ids[[4, 1]])
    assert seen == [{stable_hash(text) for text in texts} for texts in captions]


def test_further_captions_are_distinct_and_carry_the_identity_of_their_picture(pictures, shapes_config):
    texts = ["a dog", "a cat", "a dog", "a cow", ["a hen", "a pig"], "a fox"]
    rows = [{"image": f"{n}.png", "text": text} for n, text in enumerate(texts)]
    feed, _ = make_feed(pictures, rows, shapes_config, extra={"text": 4})
    batch = feed.batch(np.arange(2), number=3, epoch=0)
    ids = batch.extra_ids["text"]
    assert ids.shape == (4, 2)
    assert len(set(ids[:, 1].tolist())) == 4
    owner = {
        stable_hash(text): row for row, cell in enumerate(texts) for text in ([cell] if isinstance(cell, str) else cell)
    }
    pictures_of = feed.columns["image"].hashes
    for picture, text in ids.tolist():
        same = {pictures_of[row] for row, cell in enumerate(texts) if cell == texts[owner[text]]}
        assert picture in same
    assert feed.extra_count == 4
    again = feed.batch(np.arange(2), number=3, epoch=0).extra_ids["text"]
    assert torch.equal(ids, again)
    everything, _ = make_feed(pictures, rows, shapes_config, extra={"text": 99})
    assert everything.extra_count == 6  # all distinct captions


@pytest.mark.parametrize("frozen", [False, True])
def test_a_picture_in_several_rows_scores_like_one_with_several_captions(pictures, shapes_config, frozen):
    captions = [[f"{n} {word}" for word in ("one", "two")] for n in range(6)]
    lists = [{"image": f"{n}.png", "text": texts} for n, texts in enumerate(captions)]
    flat = [{"image": f"{n}.png", "text": text} for n, texts in enumerate(captions) for text in texts]
    feed, method = make_feed(pictures, lists, shapes_config, frozen=frozen)
    other, _ = make_feed(pictures, flat, shapes_config, frozen=frozen, method=method)
    by_list = evaluate(method.encoder, feed, (1, 12))
    by_row = evaluate(method.encoder, other, (1, 12))
    assert by_row["image_to_text/hit@1"] == by_list["image_to_text/hit@1"]
    assert by_row["text_to_image/hit@12"] == 1.0
    # each picture stands twice, so a right one is never beaten by its own copy
    assert by_row["text_to_image/hit@1"] == by_list["text_to_image/hit@1"]


def test_prefetching_keeps_order_passes_errors_on_and_ends_its_thread():
    assert list(prefetch(iter(range(50)))) == list(range(50))

    def broken():
        yield 1
        raise KeyError("here")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(KeyError, match="here"):
        next(items)
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()

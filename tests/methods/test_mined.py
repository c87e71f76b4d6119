"""Mined hard negatives in the losses, against the equation in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmcl.data.batches.batch import MINED
from mmcl.data.identity import NOTHING
from mmcl.encoding import Encoder
from mmcl.methods import Clip, Context, Siglip, Simcse, Step
from mmcl.methods.image_text.clip import ClipConfig
from mmcl.methods.image_text.siglip import SiglipConfig
from mmcl.methods.text.simcse import SimcseConfig
from mmcl.runtime.errors import MmclError

PAIR = {"anchor": "text", "positive": "text"}
SCALE = 1 / 0.1

STEP = Step(0, 1)


def cross_entropy(query, key, wrong, excluded_keys, excluded_wrong, weights):
    """Mean over the queries of -log softmax, by the rules given as matrices: loops in float64."""
    total = 0.0
    for i in range(len(query)):
        own = math.exp(query[i] @ key[i] * SCALE)
        others = sum(math.exp(query[i] @ key[j] * SCALE) for j in range(len(key)) if j != i and not excluded_keys[i, j])
        hard = sum(
            weights[i, m] * math.exp(query[i] @ wrong[m] * SCALE) for m in range(len(wrong)) if not excluded_wrong[i, m]
        )
        total -= math.log(own / (own + others + hard))
    return total / len(query)


def unit(tensor):
    vectors = tensor.detach().double().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_simcse_weighs_a_rows_own_and_leaves_out_what_belongs_to_it(make_text_encoder, make_batch):
    """Two a row; some are an anchor's other positive, or a text that a row has itself."""
    anchors = ["two dogs", "the cat runs", "a bird sings", "two dogs"]
    positives = ["dogs on the beach", "the old cat", "a red bird", "a beach"]
    partners = [*zip(anchors, positives, strict=True), ("the house", "the cat runs"), ("a tree", "the red tree")]
    chosen = [1, 4, 3, 5, 0, 5, 2, 4]  # of partners: the first two are row 0's, and so on
    negatives = ["the house", "a tree", "old dogs", "a cat"]
    encoder = make_text_encoder()
    config = SimcseConfig(temperature=0.1, hard_negative_weight=3.0)
    simcse = Simcse(config, encoder, Context(PAIR | {"negative": "text"}, batch_size=4, mined=2)).eval()
    batch = make_batch(encoder, anchor=anchors, positive=positives, negative=negatives)
    mined = make_batch(encoder, a=[partners[n][0] for n in chosen], p=[partners[n][1] for n in chosen])
    batch.extra[MINED], batch.extra_ids[MINED] = mined.inputs["p"], mined.ids
    views = simcse.outputs(batch)
    texts = [partners[n][1] for n in chosen]
    exact = Encoder(encoder)
    exact.set_compute("float32")
    np.testing.assert_allclose(unit(views.embeddings[MINED]), exact.encode(texts), atol=1e-5)
    rows = range(4)
    things = [{anchors[i], positives[i]} for i in rows]
    wrong = [{text} for text in negatives] + [set(partners[n]) for n in chosen]
    keys_out = np.array([[bool(things[i] & things[j]) for j in rows] for i in rows])
    wrong_out = np.array([[bool(things[i] & wrong[m]) for m in range(12)] for i in rows])
    owner = np.array([*rows, *np.repeat(rows, 2)])
    weights = np.where(owner[None, :] == np.arange(4)[:, None], 3.0, 1.0)
    vectors = np.concatenate([unit(views.embeddings["negative"]), unit(views.embeddings[MINED])])
    expected = cross_entropy(
        unit(views.embeddings["anchor"]), unit(views.embeddings["positive"]), vectors, keys_out, wrong_out, weights
    )
    assert wrong_out[:, 4:].any()
    assert not wrong_out.all()
    assert simcse.loss(simcse.project(views), STEP).value.item() == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(simcse.metrics(views)["accuracy"])


def test_clip_takes_hard_captions_beside_extra_ones(make_encoder, batch):
    encoder = make_encoder()
    clip = Clip(
        ClipConfig(temperature=0.1, extra_texts=3),
        encoder,
        Context({"image": "image", "text": "text"}, batch_size=8, mined=2),
    ).eval()
    torch.manual_seed(4)
    ids = torch.stack([torch.arange(100, 116) - 98 * (torch.arange(16) % 3 == 0), torch.arange(200, 216)], dim=1)
    batch.extra = {"negatives": {"input_ids": torch.randn(3, 4)}, MINED: {"input_ids": torch.randn(16, 4)}}
    batch.extra_ids = {"negatives": torch.tensor([[0, 50], [51, 2], [52, 53]]), MINED: ids}
    views = clip.outputs(batch)
    wrong = np.concatenate([unit(views.embeddings["negatives"]), unit(views.embeddings[MINED])])
    wrong_ids = np.concatenate([batch.extra_ids["negatives"].numpy(), ids.numpy()])
    rows = batch.ids.numpy()
    keys_out = (rows[:, None] == rows[None]).any(-1)
    wrong_out = (rows[:, None] == wrong_ids[None]).any(-1)
    assert wrong_out[:, 3:].any()
    image, text = unit(views.embeddings["image"]), unit(views.embeddings["text"])
    forward = cross_entropy(image, text, wrong, keys_out, wrong_out, np.ones(wrong_out.shape))
    none = np.zeros((8, 0))
    backward = cross_entropy(text, image, np.zeros((0, 5)), keys_out, none, none)
    assert clip.loss(clip.project(views), STEP).value.item() == pytest.approx((forward + backward) / 2, rel=1e-5)


def test_clip_takes_hard_captions_of_columns_where_a_row_has_them(make_encoder, batch):
    """Row 3 lacks its second one, row 1's first one is the text of row 4, and all rows have a label."""
    encoder = make_encoder()
    columns = {"image": "image", "text": "text", "negative": "text", "negative_2": "text", "label": "label"}
    clip = Clip(ClipConfig(temperature=0.1), encoder, Context(columns, batch_size=8, mined=1)).eval()
    assert clip.optional == {"negative", "negative_2"}
    assert clip.views()["negative_2"].tower == "text"
    torch.manual_seed(4)
    batch.inputs |= {name: {"input_ids": torch.randn(8, 4)} for name in ("negative", "negative_2")}
    batch.inputs["label"] = {"labels": torch.arange(1000, 1008)}
    own = torch.stack([torch.arange(300, 308), torch.arange(400, 408)], dim=1)
    own[1, 0], own[3, 1] = batch.ids[4, 1], NOTHING
    batch.ids = torch.cat([batch.ids, own], dim=1)
    batch.extra[MINED] = {"input_ids": torch.randn(8, 4)}
    others = torch.arange(500, 532).reshape(8, 4)
    batch.extra_ids[MINED] = torch.cat([others, torch.arange(1000, 1008)[:, None] + 1], dim=1)  # with a label
    views = clip.outputs(batch)
    there = np.arange(8) != 3
    wrong = np.concatenate(
        [unit(views.embeddings["negative"]), unit(views.embeddings["negative_2"])[there], unit(views.embeddings[MINED])]
    )
    rows = np.concatenate([batch.ids[:, :2].numpy(), np.arange(1000, 1008)[:, None]], axis=1)
    of_columns = np.concatenate([own[:, 0].numpy(), own[there, 1].numpy()])[:, None].repeat(3, axis=1)
    wrong_ids = np.concatenate([of_columns, batch.extra_ids[MINED][:, [0, 1, 4]].numpy()])
    keys_out, wrong_out = ((rows[:, None] == of[None]).any(-1) for of in (rows, wrong_ids))
    assert wrong_out[4, 1]
    image, text = unit(views.embeddings["image"]), unit(views.embeddings["text"])
    forward = cross_entropy(image, text, wrong, keys_out, wrong_out, np.ones(wrong_out.shape))
    backward = cross_entropy(text, image, np.zeros((0, 5)), keys_out, np.zeros((8, 0)), np.zeros((8, 0)))
    assert clip.loss(clip.project(views), STEP).value.item() == pytest.approx((forward + backward) / 2, rel=1e-5)


def test_methods_without_a_use_for_them_refuse_them(make_encoder, make_text_encoder):
    with pytest.raises(MmclError, match=r"^data\.mining: hard negatives are mined for clip and for simcse on pairs"):
        Siglip(SiglipConfig(), make_encoder(), Context({"image": "image", "text": "text"}, batch_size=8, mined=1))
    with pytest.raises(MmclError, match=r"^data\.mining"):
        Simcse(SimcseConfig(), make_text_encoder(), Context({"text": "text"}, batch_size=8, mined=1))
    Simcse(SimcseConfig(hard_negative_weight=2.0), make_text_encoder(), Context(PAIR, batch_size=8, mined=1))
    with pytest.raises(MmclError, match=r"set data\.mining, or leave it out"):
        Simcse(SimcseConfig(hard_negative_weight=2.0), make_text_encoder(), Context(PAIR, batch_size=8))

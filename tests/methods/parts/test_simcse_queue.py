"""Simcse with a queue of former keys, against explicit lists of them."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from mmcl.data.identity import stable_hash
from mmcl.losses import Guide, Negatives, debiased_info_nce, info_nce
from mmcl.methods import Context, Simcse
from mmcl.methods.paired import key_of, view_of
from mmcl.methods.parts.queue import QueueConfig
from mmcl.methods.parts.references import GuideConfig, TeacherConfig
from mmcl.methods.text.simcse import SimcseConfig

from .former_keys import STEP, exactly, learn, one_way

TEXTS = ["two dogs", "the cat runs", "a bird sings", "a red house", "the old cat", "dogs on the beach", "a tree"]
TEXTS += ["the house in a tree", "a bird", "the beach", "a cat sleeps", "two red dogs"]


@pytest.fixture
def make_simcse(make_text_encoder):
    def make(*roles, references=None, dropout=0.0, **settings):
        inputs = dict.fromkeys(roles or ("text",), "text")
        config, encoder = SimcseConfig(**settings), make_text_encoder(dropout)
        return Simcse(config, encoder, Context(inputs, batch_size=4, references=references or {})).double()

    return make


def flat(outputs):
    """All vectors by one name each."""
    keys = {f"key_{name}" if name in outputs.embeddings else name: of for name, of in outputs.keys.items()}
    guide = {f"guide_{name}": of for name, of in outputs.rows.references.get("guide", {}).items()}
    return outputs.embeddings | keys | guide


def pairs(step):
    """Rows of anchor, positive and hard negative; the next step has texts of this one again, on either side."""
    take = [TEXTS[(4 * step + n) % 12] for n in range(4)]
    return {
        "anchor": take,
        "positive": [TEXTS[(5 * step + n + 3) % 12] for n in range(4)],
        "negative": [TEXTS[(3 * step + n + 7) % 12] for n in range(4)],
    }


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.5])
def test_simcse_tells_anchors_from_former_positives_and_positives_from_former_anchors(
    make_simcse, make_batch, symmetric, momentum
):
    simcse = make_simcse(
        "anchor", "positive", queue=QueueConfig(size=9, momentum=momentum), symmetric=symmetric, temperature=0.2
    )
    former = deque(maxlen=9)
    sides = ("anchor", "positive")
    for step in range(5):
        texts = {side: pairs(step)[side] for side in sides}
        views = simcse.outputs(make_batch(simcse.encoder, **texts))
        loss = simcse.loss(views, STEP).value
        query = {side: view_of(views, side) for side in sides}
        key = {side: key_of(views, side) for side in sides if side in views.keys or side in views.embeddings}
        if momentum is not None:
            assert query["positive"].requires_grad == symmetric
            assert not key["positive"].requires_grad
        rows = [set(row) for row in zip(*texts.values(), strict=True)]

        def same(i, j, rows=rows):
            return bool(rows[i] & rows[j])

        def same_former(i, m, rows=rows):
            return bool(rows[i] & former[m]["texts"])

        ways = [sides, sides[::-1]] if symmetric else [sides]
        found = [
            one_way(query[a], key[b], [row[b] for row in former], same, same_former, simcse.temperature)
            for a, b in ways
        ]
        exactly(loss, torch.stack(found).mean())
        former.extend({side: key[side][i].detach() for side in sides} | {"texts": rows[i]} for i in range(4))
        learn(simcse, views, loss)


@pytest.mark.parametrize("debias", [0.0, 0.1])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.5])
def test_hard_negatives_a_guide_and_a_training_head_go_with_a_queue(
    make_simcse, make_text_encoder, make_batch, momentum, head, debias
):
    settings = {"hard_negative_weight": 2.0, "temperature": 0.3, "symmetric": True, "training_head": head}
    settings |= {"debias": debias} if debias else {"guide": GuideConfig(name="x", margin=0.1)}
    references = {} if debias else {"guide": make_text_encoder(dim=3, width=16).double()}
    simcse = make_simcse(
        "anchor", "positive", "negative",
        queue=QueueConfig(size=8, momentum=momentum), references=references or {}, **settings,
    )  # fmt: skip
    kept = []
    for step in range(3):
        batch = make_batch(simcse.encoder, **pairs(step))
        if not debias:
            batch.references["guide"] = {role: {"features": torch.randn(4, 16).double()} for role in pairs(step)}
        views = simcse.outputs(batch)
        v = flat(simcse.project(views))
        loss = simcse.loss(simcse.project(views), STEP).value
        if step == 2:
            break
        kept.append({name: tensor.detach() for name, tensor in v.items()} | {"ids": batch.ids})
        learn(simcse, simcse.project(views), loss)

    former = {name: torch.cat([one[name] for one in kept]) for name in kept[0]}
    own, before = ({"a": ids[:, 0], "p": ids[:, 1]} for ids in (batch.ids, former["ids"]))

    def cross(of, *order):
        return torch.stack([of[name] for name in order], dim=1)

    losses = []
    for query, key, by, of in (("anchor", "positive", "aapp", "apap"), ("positive", "anchor", "apap", "aapp")):
        names = [*(["negative"] if key == "positive" else [])]
        key_name = f"key_{key}" if momentum is not None else key
        stored = former[key_name]
        hard_ids = [batch.ids[:, 2:].expand(-1, 4) for _ in names]
        negatives = Negatives(
            torch.cat([v[name] for name in names] + [stored]),
            torch.cat([*hard_ids, cross(before, *of)]),
            torch.cat([torch.arange(4) for _ in names] + [torch.full((8,), -1)]),
            weight=2.0,
        )
        options = {"ids": (cross(own, *by), cross(own, *of)), "negatives": negatives, "symmetric": False}
        if debias:
            losses.append(debiased_info_nce(v[query], v[key_name], simcse.temperature, debias=debias, **options))
            continue
        guided = torch.cat([v[f"guide_{name}"] for name in names] + [former[f"guide_{key}"]])
        guide = Guide(v[f"guide_{query}"], v[f"guide_{key}"], guided, 0.1)
        losses.append(info_nce(v[query], v[key_name], simcse.temperature, guide=guide, **options))
    exactly(loss, torch.stack(losses).mean())
    if head and momentum is not None:
        copied = simcse.momentum("projector", views.keys["anchor"])
        exactly(v["key_anchor"], copied)
        assert not torch.allclose(v["key_anchor"], simcse.heads["projector"](views.keys["anchor"]), atol=1e-9)


def test_a_sentence_is_no_negative_of_itself_met_before(make_simcse, make_batch):
    simcse = make_simcse(queue=QueueConfig(size=16))
    first = make_batch(simcse.encoder, text=TEXTS[:4])
    outputs = simcse.outputs(first)
    learn(simcse, outputs, simcse.loss(outputs, STEP).value)
    again = make_batch(simcse.encoder, text=[TEXTS[0], TEXTS[8], TEXTS[2], TEXTS[9]])
    views = simcse.outputs(again)
    loss = simcse.loss(simcse.project(views), STEP).value
    former, held = simcse.queue.contents(), [0, 1, 2, 3]
    assert former["ids"].flatten().tolist() == [stable_hash(text) for text in TEXTS[:4]]
    expected = one_way(
        views.embeddings["anchor"], views.embeddings["positive"], former["positive"],
        lambda i, j: False, lambda i, m: (i, held[m]) in {(0, 0), (2, 2)}, simcse.temperature,
    )  # fmt: skip
    exactly(loss, expected)


def test_a_copy_without_dropout_embeds_positives_of_a_sentence(make_simcse, make_batch):
    simcse = make_simcse(queue=QueueConfig(size=16, momentum=0.9), dropout=0.5, teacher=None)
    batch = make_batch(simcse.encoder, text=TEXTS[:4])
    views, again = simcse.outputs(batch), simcse.outputs(batch)
    assert torch.equal(views.keys["positive"], again.keys["positive"])
    assert not torch.equal(views.embeddings["anchor"], again.embeddings["anchor"])
    simcse.eval()
    exactly(views.keys["positive"], simcse.outputs(batch).embeddings["positive"])


def test_a_teacher_goes_with_a_momentum_copy(make_simcse, make_text_encoder, make_batch):
    references = {"teacher": make_text_encoder(dim=3, width=16).double()}
    settings = {"teacher": TeacherConfig(name="x"), "queue": QueueConfig(size=16, momentum=0.9)}
    simcse = make_simcse("anchor", "positive", references=references or {}, **settings)
    batch = make_batch(simcse.encoder, **{side: pairs(0)[side] for side in ("anchor", "positive")})
    batch.references["teacher"] = {s: {"features": torch.randn(4, 16).double()} for s in ("anchor", "positive")}
    parts = simcse.loss(simcse.project(simcse.outputs(batch)), STEP).parts
    assert parts.keys() == {"contrastive", "distillation"}
    assert all(torch.isfinite(part) for part in parts.values())

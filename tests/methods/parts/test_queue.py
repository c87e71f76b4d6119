"""Queues of past keys, against explicit lists of them, the equation in float64, and lightly."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mmcl.config.load import load_config
from mmcl.data.identity import stable_hash
from mmcl.losses import Guide, Negatives, batch_accuracy, debiased_info_nce, info_nce
from mmcl.methods import Clip, Context, Outputs, Simcse, Step
from mmcl.methods.clip import ClipConfig
from mmcl.methods.paired import key_of, view_of
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.queue import MemoryQueue, QueueConfig
from mmcl.methods.parts.references import GuideConfig, TeacherConfig
from mmcl.methods.simcse import SimcseConfig
from mmcl.runtime.errors import MmclError

TEXTS = ["two dogs", "the cat runs", "a bird sings", "a red house", "the old cat", "dogs on the beach", "a tree"]
TEXTS += ["the house in a tree", "a bird", "the beach", "a cat sleeps", "two red dogs"]

STEP = Step(0, 1)


def exactly(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def one_way(query, key, former, same, same_former, temperature, smoothing=0.0):
    """Mean cross-entropy, term by term: ``same(i, j)`` of the batch, ``same_past(i, m)`` of the list of past keys."""
    terms = []
    for i in range(len(query)):
        candidates = [key[i]]
        candidates += [key[j] for j in range(len(key)) if j != i and not same(i, j)]
        candidates += [former[m] for m in range(len(former)) if not same_former(i, m)]
        logits = torch.stack([F.cosine_similarity(query[i], one, dim=0) for one in candidates]) / temperature
        gains = logits - logits.logsumexp(dim=0)
        terms.append((1 - smoothing) * gains[0] + smoothing * gains.mean())
    return -torch.stack(terms).mean()


def shared(a, b):
    return bool((a == b).any())


# --- the queue itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [1, 5, 2, 7, 4], [20, 3], [7, 7], [2]])
def test_a_queue_is_a_list_of_the_newest_rows(sizes):
    queue, expected = MemoryQueue(7, {"a": 2, "b": 3}, columns=2), deque(maxlen=7)
    number = 0
    for size in sizes:
        rows = torch.arange(number, number + size)
        number += size
        queue.push({"a": rows[:, None].expand(-1, 2), "b": -rows[:, None].expand(-1, 3), "ids": rows[:, None] + 1000})
        expected.extend(rows.tolist())
        former = queue.contents()
        assert queue.filled == len(expected)
        order = torch.arange(queue.filled) if queue.filled < 7 else (torch.arange(7) + queue.next) % 7  # oldest first
        assert former["a"][order][:, 0].tolist() == list(expected)
        assert torch.equal(former["b"][:, 2], -former["a"][:, 0])
        assert torch.equal(former["ids"][:, 1], 1000 + former["a"][:, 1].long())


def test_a_queue_gives_nothing_before_its_start_and_holds_then_what_came_before():
    queue = MemoryQueue(4, {"a": 1}, columns=1, start=2)
    rows = {"a": torch.ones(1, 1), "ids": torch.zeros(1, 1, dtype=torch.long)}
    assert queue.contents() == {}
    queue.push(rows)
    assert queue.contents() == {}
    queue.push(rows)
    assert len(queue.contents()["a"]) == 2
    with pytest.raises(ValueError, match="1 row or more, not 0"):
        MemoryQueue(0, {}, columns=1)


def test_a_queue_holds_and_gives_what_lightly_s_memory_bank_does():
    bank = pytest.importorskip("lightly.models.modules.memory_bank")
    theirs, ours = bank.MemoryBankModule((12, 5)), MemoryQueue(12, {"a": 5}, columns=1)
    torch.manual_seed(0)
    for _ in range(8):
        batch = torch.randn(4, 5)
        theirs(batch, update=True)
        ours.push({"a": batch, "ids": torch.zeros(4, 1, dtype=torch.long)})
    assert torch.equal(ours.former()["a"], theirs.bank)


def test_a_queue_with_info_nce_is_moco_s_loss_as_lightly_computes_it():
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.1, memory_bank_size=(12, 5))
    torch.manual_seed(0)
    queue = MemoryQueue(12, {"key": 5}, columns=1)
    for step in range(6):
        query, key = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
        theirs = loss(query, key)
        if step >= 3:  # its bank starts with random vectors
            former = Negatives(queue.contents()["key"])
            rows = [
                info_nce(q[None], k[None], 0.1, negatives=former, symmetric=False)
                for q, k in zip(query, key, strict=True)
            ]
            ours = torch.stack(rows).mean()  # row by row: MoCo has no negatives within the batch
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(*(torch.autograd.grad(x, query)[0] for x in (ours, theirs)))
        queue.push({"key": F.normalize(key, dim=1), "ids": torch.zeros(4, 1, dtype=torch.long)})


# --- clip ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_clip(make_encoder):
    def make(queue, references=None, **settings):
        config = ClipConfig(queue=queue, **settings)
        inputs = {"image": "image", "text": "text"}
        return Clip(config, make_encoder(), Context(inputs, batch_size=8, references=references or {})).double()

    return make


def batches(batch, count):
    """Others like it, of which half of the rows come back in the next one, alone or with another partner."""
    for number in range(count):
        torch.manual_seed(number)
        inputs = {
            role: {name: torch.randn_like(x) for name, x in named.items()} for role, named in batch.inputs.items()
        }
        ids = batch.ids + 4 * number
        ids[1, 1] += 1000
        yield replace(batch, inputs=inputs, ids=ids)


def learn(method, outputs, loss):
    """A step of gradient descent, and what comes after it."""
    names, weights = zip(*((n, p) for n, p in method.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= 0.1 * (0 if gradient is None else gradient)
    method.after_update(outputs.detached(), STEP)
    return dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("size", [5, 12, 100])
def test_clip_tells_images_from_former_texts_and_texts_from_former_images(make_clip, batch, size, momentum):
    clip = make_clip(QueueConfig(size=size, momentum=momentum), temperature=0.2, label_smoothing=0.1)
    copies = {}
    if momentum is not None:
        copies = {side: copy.deepcopy(clip.encoder.embedder(side)) for side in clip.sides}
    former = deque(maxlen=size)
    for step, one in enumerate(batches(batch, 5)):
        clip.train()
        outputs = clip.outputs(one)
        loss = clip.loss(outputs, STEP).value
        image, text = (clip.encoder.embedder(side)(**one.inputs[side]) for side in clip.sides)
        keys = {"image": image, "text": text}
        if copies:
            keys = {side: copies[side](**one.inputs[side]).detach() for side in clip.sides}
        ids = one.ids

        def same(i, j, ids=ids):
            return shared(ids[i], ids[j])

        def same_former(i, m, ids=ids):
            return shared(ids[i], former[m]["ids"])

        ways = [
            one_way(query, keys[side], [row[side] for row in former], same, same_former, clip.temperature, 0.1)
            for query, side in ((image, "text"), (text, "image"))
        ]
        expected = (ways[0] + ways[1]) / 2
        exactly(loss, expected)
        learned = [p for p in clip.parameters() if p.requires_grad]
        exactly(*(torch.autograd.grad(x, learned, retain_graph=True) for x in (loss, expected)))
        assert any(same_former(i, m) for i in range(8) for m in range(len(former))) == (step > 0)
        former.extend(
            {"image": keys["image"][i].detach(), "text": keys["text"][i].detach(), "ids": ids[i]} for i in range(8)
        )
        learn(clip, outputs, loss)
        for side, other in copies.items():
            for own, followed in zip(other.parameters(), clip.encoder.embedder(side).parameters(), strict=True):
                own.data = momentum * own.data + (1 - momentum) * followed.data


def test_before_the_start_the_loss_is_that_without_a_queue(make_clip, batch):
    plain, queued = make_clip(None), make_clip(QueueConfig(size=8, start=2))
    queued.load_state_dict(plain.state_dict(), strict=False)
    for step, one in enumerate(batches(batch, 4)):
        outputs = [method.outputs(one) for method in (plain, queued)]
        losses = [method.loss(of, STEP).value for method, of in zip((plain, queued), outputs, strict=True)]
        assert torch.isclose(*losses, rtol=1e-12) == (step < 2)
        for method, of, loss in zip((plain, queued), outputs, losses, strict=True):
            learn(method, of, loss)
        plain.load_state_dict(queued.state_dict(), strict=False)


def test_extra_captions_and_all_dimensions_go_with_a_queue(make_clip, batch):
    settings = {"matryoshka": MatryoshkaConfig(dims=[3]), "extra_texts": 3, "temperature": 0.3}
    clip = make_clip(QueueConfig(size=8, momentum=0.5), **settings)
    first, second = batches(batch, 2)
    outputs = clip.outputs(first)
    learn(clip, outputs, clip.loss(outputs, STEP).value)
    second.extra["negatives"] = {"input_ids": torch.randn(3, 4).double()}
    second.extra_ids["negatives"] = torch.tensor([[100, 4], [101, 6], [102, 50]])
    views = clip.outputs(second)
    assert not views.keys["negatives"].requires_grad
    former, loss = {name: rows.clone() for name, rows in clip.queue.contents().items()}, 0
    for cut in (slice(None), slice(3)):
        ids = torch.cat([views.rows.extra_ids["negatives"], former["ids"]])
        texts = Negatives(torch.cat([views.keys["negatives"], former["text"]])[:, cut], ids)
        options = {"ids": second.ids, "symmetric": False}
        image, text, key_image, key_text = (
            of[side][:, cut] for of in (views.embeddings, views.keys) for side in clip.sides
        )
        loss += info_nce(image, key_text, clip.temperature, negatives=texts, **options) / 2
        images = Negatives(former["image"][:, cut], former["ids"])
        loss += info_nce(text, key_image, clip.temperature, negatives=images, **options) / 2
    exactly(clip.loss(clip.project(views), STEP).value, loss)


def test_the_loss_changes_nothing_and_only_training_asks_the_copy(make_clip, batch):
    clip = make_clip(QueueConfig(size=8, momentum=0.5)).eval()
    batch = next(batches(batch, 1))
    assert clip.outputs(batch).keys == {}
    clip.train()
    views = clip.outputs(batch)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    assert clip.loss(views, STEP).value == clip.loss(views, STEP).value
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())
    clip.after_update(Outputs.of_batches([views.detached(), views.detached()]), STEP)  # two batches of one step
    assert (int(clip.queue.pushed), int(clip.queue.steps)) == (16, 1)
    image, text = (views.embeddings[side] for side in clip.sides)
    assert clip.metrics(views)["accuracy"] == batch_accuracy(image, text, ids=batch.ids)


# --- simcse -------------------------------------------------------------------------------------------------------


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


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "clip", "queue": {"size": 0}}, r"'method\.queue\.size' is 0: input should be greater than or equal"),
        (
            {"name": "clip", "queue": {"momentum": 1.0}},
            r"'method\.queue\.momentum' is 1\.0: input should be less than 1",
        ),
        ({"name": "clip", "momentum": 0.9}, r"unknown key 'method\.momentum'"),
        ({"name": "siglip", "queue": {}}, r"unknown key 'method\.queue'"),
    ],
)
def test_mistakes_are_reported_in_one_line(method, message):
    config = {"method": method, "data": {"train": {"source": "x"}}, "model": {"dim": 4}}
    with pytest.raises(MmclError, match=message) as caught:
        load_config(config)
    assert "\n" not in str(caught.value)


def test_a_queue_is_off_unless_asked_for():
    assert ClipConfig().queue is None
    assert SimcseConfig(queue={}).queue == QueueConfig(size=16384, momentum=None, start=0)
    with pytest.raises(ValidationError):
        QueueConfig(start=-1)

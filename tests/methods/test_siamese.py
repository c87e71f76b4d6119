"""Siamese networks: what the columns make of the rows, and their losses against those of unit vectors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmcl.config.data import AugmentationConfig
from mmcl.config.load import load_config
from mmcl.data.batches.batch import Batch
from mmcl.losses import contrastive, mined_triplet, triplet
from mmcl.methods import Context, Outputs, Rows, Siamese, Step
from mmcl.methods.siamese import SiameseConfig
from mmcl.runtime.errors import MmclError

STEP = Step(0, 1)
LABELS = {"label": "label"}
PAIRS = {"first": None, "second": None, "same": "number"}
TRIPLETS = dict.fromkeys(("anchor", "positive", "negative"))
SAME = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])


def columns(kind, modality):
    items = {modality: modality} if kind is LABELS else {}
    return items | {role: of or modality for role, of in kind.items()}


@pytest.fixture
def make(make_encoder):
    def make(kind, modality="image", augmentation=None, **settings):
        context = Context(columns(kind, modality), 6, augmentation=augmentation)
        return Siamese(SiameseConfig(**settings), make_encoder(), context).train()

    return make


def batch_of(method, **values):
    torch.manual_seed(1)
    tensor = {"image": "pixels", "text": "input_ids"}[method.tower]
    inputs = {role: {tensor: torch.randn(6, 4)} for role, of in method.columns.items() if of == method.tower}
    rows = torch.arange(6)
    return Batch(inputs | values, torch.stack([rows] * len(inputs), dim=1), seeds=rows, rows=rows)


def unit(method, batch, role):
    return F.normalize(method.encoder.embedder(method.tower)(**batch.inputs[role]).double(), dim=1)


def loss_of(method, batch):
    outputs = method.project(method.outputs(batch))
    value = method.loss(outputs, STEP).value
    value.backward(retain_graph=True)
    assert all(p.grad is not None for p in method.encoder.embedder(method.tower).parameters())
    return value.double()


@pytest.mark.parametrize("modality", ["image", "text"])
def test_pairs_learn_by_the_contrastive_loss(make, modality):
    for settings, margin in (({}, 1.0), ({"margin": 1.7}, 1.7)):
        method = make(PAIRS, modality, **settings)
        batch = batch_of(method, same={"values": SAME})
        first, second = (unit(method, batch, role) for role in ("first", "second"))
        torch.testing.assert_close(loss_of(method, batch), contrastive(first, second, SAME == 1, margin))
    assert method.compared_with() == "labelled pairs"


@pytest.mark.parametrize("modality", ["image", "text"])
def test_triplets_learn_by_the_triplet_loss(make, modality):
    method = make(TRIPLETS, modality, margin=0.5)
    batch = batch_of(method)
    torch.testing.assert_close(
        loss_of(method, batch), triplet(*(unit(method, batch, role) for role in TRIPLETS), margin=0.5)
    )


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard", "all"])
def test_items_with_labels_learn_by_the_triplets_of_the_batch(make, modality, mining):
    method = make(LABELS, modality, mining=mining, margin=1.0)
    labels = torch.tensor([5, 7, 5, 7, 5, 1])
    batch = batch_of(method, label={"labels": labels})
    expected = mined_triplet(unit(method, batch, modality), labels, 1.0, mining=mining)
    assert expected > 0
    torch.testing.assert_close(loss_of(method, batch), expected)
    assert "triplets of the batch" in method.compared_with()


def test_a_batch_of_one_label_costs_nothing(make):
    method = make(LABELS)
    assert loss_of(method, batch_of(method, label={"labels": torch.ones(6, dtype=torch.int64)})) == 0.0


def test_images_of_a_row_are_changed_independently_and_by_its_seed_alone(make):
    method = make(TRIPLETS, augmentation=AugmentationConfig(crop_scale=(0.3, 1.0), brightness=0.4))
    pixels = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8)
    rows = torch.arange(6)
    ids = torch.zeros(6, 3, dtype=torch.int64)
    batch = Batch({role: {"pixels": pixels} for role in TRIPLETS}, ids, seeds=rows, rows=rows)
    views = method.view_inputs(batch)
    a, p, n = (views[role]["pixels"] for role in TRIPLETS)
    for one, other in ((a, p), (a, n), (p, n)):
        assert not torch.isclose(one, other).flatten(1).all(dim=1).any()
    part = method.view_inputs(batch.split([2, 4])[1])
    assert all(torch.equal(part[role]["pixels"], views[role]["pixels"][2:]) for role in TRIPLETS)
    method.eval()
    views = method.view_inputs(batch)
    assert torch.equal(views["anchor"]["pixels"], views["positive"]["pixels"])


def outputs_of(labels=None, same=None, **vectors):
    names = {name: F.normalize(torch.tensor(of), dim=1) for name, of in vectors.items()}
    values = {} if same is None else {"same": torch.tensor(same)}
    named = {} if labels is None else {"label": torch.tensor(labels)}
    return Outputs(names, Rows(torch.zeros(3, 1, dtype=torch.int64), values=values, labels=named))


def test_accuracy_is_of_pairs_of_triplets_and_of_neighbours(make):
    east, north, west = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    pairs = outputs_of(first=[east, east, east], second=[east, west, north], same=[1.0, 0.0, 1.0])
    assert make(PAIRS).metrics(pairs) == {"accuracy": pytest.approx(2 / 3)}
    triplets = outputs_of(anchor=[east] * 3, positive=[east, north, west], negative=[west, east, north])
    assert make(TRIPLETS).metrics(triplets) == {"accuracy": pytest.approx(1 / 3)}
    items = outputs_of(image=[east, [1.0, 0.1], north, west], labels=[0, 0, 1, 0])
    assert make(LABELS).metrics(items) == {"accuracy": pytest.approx(2 / 3), "anchors": 0.75}
    alone = outputs_of(image=[east, north], labels=[0, 1])
    assert make(LABELS).metrics(alone) == {"accuracy": 0.0, "anchors": 0.0}


@pytest.mark.parametrize(
    ("named", "model", "settings", "expected"),
    [
        ([], "image", {}, {"image": "image", "label": "label"}),
        (["label"], "text", {}, {"text": "text", "label": "label"}),
        (["first", "second"], "image", {}, {"first": "image", "second": "image", "same": "number"}),
        (["same"], "text", {}, {"first": "text", "second": "text", "same": "number"}),
        (["negative"], "image", {}, dict.fromkeys(TRIPLETS, "image")),
        (["anchor"], None, {"modality": "text"}, dict.fromkeys(TRIPLETS, "text")),
    ],
)
def test_the_columns_say_what_a_row_is(named, model, settings, expected):
    values = {"method": {"name": "siamese"} | settings, "model": {model: {}} if model else {"name": "runs/x"}}
    values["data"] = {"train": {"source": "x"}, "columns": {role: role for role in named}}
    assert Siamese.columns_of(load_config(values)) == expected


def test_what_does_not_fit_ends_in_one_line(make):
    method = make(PAIRS)
    outputs = method.project(method.outputs(batch_of(method, same={"values": 3 * SAME})))
    with pytest.raises(MmclError, match=r"data.columns.same: there are numbers from 0 to 3; give 1 for pairs of the s"):
        method.loss(outputs, STEP)
    values = {"method": "siamese", "data": {"train": {"source": "x"}}, "model": {"image": {}}}
    with pytest.raises(MmclError, match=r"data.columns.same: method 'siamese' has no such role"):
        Siamese.columns_of(load_config(values, ["data.columns={anchor: a, positive: b, same: c}"]))
    with pytest.raises(MmclError, match=r"method.mining: all is of rows with labels"):
        make(PAIRS, mining="all")
    with pytest.raises(MmclError, match=r"method.mining.*'batch_hard', 'semi_hard' or 'all'"):
        load_config(values, ["method={name: siamese, mining: hard}"])

from __future__ import annotations

import importlib
import json
import zlib

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mmcl.evaluation import classifier, zero_shot
from mmcl.runtime.errors import MmclError


class HashEncoder:
    """A vector of any length for each text, the same every time."""

    def encode(self, inputs: list, /) -> np.ndarray:
        rows = [np.random.default_rng(zlib.crc32(str(text).encode())).standard_normal(8) * 3 for text in inputs]
        return np.array(rows, dtype=np.float32)


def test_classifier_is_the_normalised_mean_of_normalised_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    names, templates = ["cat", "dog", "axolotl"], ["{}", "a {name} here", "{} {}"]
    expected = []
    for name in names:
        vectors = HashEncoder().encode([name, f"a {name} here", f"{name} {name}"])
        mean = sum(vector / np.sqrt((vector**2).sum()) for vector in vectors)
        expected.append(mean / np.sqrt((mean**2).sum()))
    np.testing.assert_allclose(classifier(HashEncoder(), names, templates), expected, atol=1e-6)
    monkeypatch.setattr(importlib.import_module("mmcl.evaluation.tasks.classification.zero_shot"), "_SENTENCES", 4)
    np.testing.assert_allclose(classifier(HashEncoder(), names, templates), expected, atol=1e-6)


def test_accuracies_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    classes = rng.standard_normal((7, 5))
    labels = np.append(np.arange(7), rng.integers(0, 7, 193) ** 2 // 7)  # unequal sizes, no class empty
    images = classes[labels] + 1.5 * rng.standard_normal((200, 5))
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    scores = unit @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T
    ours = zero_shot(images, labels, classes, ks=(1, 5, 7), names=list("abcdefg"))
    assert ours.metrics == pytest.approx(
        {
            "top@1": top_k_accuracy_score(labels, scores, k=1),
            "top@5": top_k_accuracy_score(labels, scores, k=5),
            "mean_per_class": balanced_accuracy_score(labels, scores.argmax(1)),
        }
    )
    assert ours.per_class["c"] == pytest.approx((scores.argmax(1) == 2)[labels == 2].mean())
    assert ours.chance() == pytest.approx({"top@1": 1 / 7, "top@5": 5 / 7, "mean_per_class": 1 / 7})
    for name, (low, high) in ours.intervals.items():
        assert low < ours.metrics[name] < high
    assert json.loads(json.dumps(ours.to_dict()))["images"] == 200


def test_a_tie_between_classes_never_helps() -> None:
    scores = zero_shot(np.eye(2), [0, 1], np.array([[1.0, 0], [0, 1.0], [0, 1.0]]))
    assert scores.metrics["top@1"] == 0.5
    assert scores.per_class == {0: 1.0, 1: 0.0}
    assert (scores.classes, scores.empty_classes) == (3, 1)
    assert "top@5" not in scores.metrics


def test_images_are_embedded_if_an_encoder_is_given() -> None:
    names = ["cat", "dog"]
    scores = zero_shot(names, [0, 1], classifier(HashEncoder(), names), encoder=HashEncoder(), names=names)
    assert scores.metrics == {"top@1": 1.0, "mean_per_class": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(2), [0], np.eye(2)), "labels: expected 2 class numbers"),
        ((np.eye(2), [0, 2], np.eye(2)), "image 1 has class 2, but classes run from 0 to 1"),
        ((np.eye(2), [0.0, 1.0], np.eye(2)), "labels: expected 2 class numbers"),
        ((np.eye(2), [0, 1], np.eye(3)), "images have 2 dimensions and class vectors 3"),
        ((np.full((1, 2), np.nan), [0], np.eye(2)), "images: the vector of row 0"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(MmclError, match=message):
        zero_shot(*arguments)


def test_bad_names_are_answered_in_one_line() -> None:
    with pytest.raises(MmclError, match="3 names for 2"):
        zero_shot(np.eye(2), [0, 1], np.eye(2), names=["a", "b", "c"])
    with pytest.raises(MmclError, match="names: give a list"):
        classifier(HashEncoder(), "cat")


@pytest.fixture(scope="module")
def open_clip_model():
    """A small random CLIP of open_clip's, and an encoder of texts by it."""
    import open_clip
    import torch

    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=24)

    class Texts:
        def encode(self, inputs: list, /) -> np.ndarray:
            with torch.no_grad():
                return model.encode_text(tokenizer(inputs)).numpy()

    return model, tokenizer, Texts()


@pytest.mark.parametrize(("ours", "theirs"), [("openai", "OPENAI_IMAGENET_TEMPLATES"), ("a {}!", None)])
def test_the_classifier_is_open_clips(open_clip_model, monkeypatch, ours: str, theirs: str | None) -> None:
    from open_clip import IMAGENET_CLASSNAMES, build_zero_shot_classifier, zero_shot_metadata

    model, tokenizer, texts = open_clip_model
    templates = getattr(zero_shot_metadata, theirs) if theirs else [ours]
    names = [*IMAGENET_CLASSNAMES[:6], "missile", "tench", "missile"]  # some stand for two classes
    expected = build_zero_shot_classifier(model, tokenizer, names, templates, num_classes_per_batch=4)
    monkeypatch.setattr(importlib.import_module("mmcl.evaluation.tasks.classification.zero_shot"), "_SENTENCES", 200)
    vectors = classifier(texts, names, ours)
    np.testing.assert_allclose(vectors, expected.numpy().T, atol=1e-5)
    assert np.array_equal(vectors[6], vectors[8])


def test_clip_benchmarks_accuracies_equal_its_own() -> None:
    """Where no names repeat they are ours; where some do, the first of the classes with one name is the answer."""
    import torch

    rng = np.random.default_rng(1)
    classes = rng.standard_normal((9, 5)).astype(np.float32)
    classes[[4, 7, 8]] = classes[[1, 1, 3]]
    labels = np.append(np.arange(9), rng.integers(0, 9, 291))
    images = (classes[labels] + 1.5 * rng.standard_normal((300, 5))).astype(np.float32)
    unit = torch.nn.functional.normalize
    logits = unit(torch.from_numpy(images).double()) @ unit(torch.from_numpy(classes).double()).mT
    logits = logits.mul(2**30).round()  # a product of equal vectors may differ in the last digit
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices.numpy()
    expected = {
        "acc1": (order[:, 0] == labels).mean(),
        "acc5": (order[:, :5] == labels[:, None]).any(1).mean(),
        "mean_per_class_recall": balanced_accuracy_score(labels, order[:, 0]),
    }
    scores = zero_shot(images, labels, classes, bootstrap=0)
    assert scores.clip_benchmark == pytest.approx(expected)
    assert scores.metrics["top@1"] < scores.clip_benchmark["acc1"]

    apart = rng.standard_normal((9, 5))
    scores = zero_shot(images, labels, apart, bootstrap=0)
    assert scores.clip_benchmark == pytest.approx(
        dict(zip(("acc1", "acc5", "mean_per_class_recall"), scores.metrics.values(), strict=True))
    )
    assert list(zero_shot(np.eye(3), [0, 1, 2], np.eye(3)).clip_benchmark) == ["acc1", "mean_per_class_recall"]


def test_classes_of_one_name_are_distinguished_by_number() -> None:
    scores = zero_shot(np.eye(3), [0, 1, 2], np.eye(3), names=["missile", "tench", "missile"])
    assert list(scores.per_class) == ["missile (0)", "tench", "missile (2)"]

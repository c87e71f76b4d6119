"""Judging tables of rows against dense formulas, on real photographs with five captions each if they are at hand."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.evaluation import compare, retrieval_of_texts, retrieval_pairs
from mmcl.evaluation.tasks.rows import diagnostics_of_rows, retrieval_of_rows, scores_of_rows, zero_shot_of_rows
from mmcl.evaluation.texts import text_identities
from mmcl.runtime.errors import MmclError
from mmcl.training import train

FLICKR = Path(__file__).parents[4] / "shared" / "data" / "flickr8k_1000.parquet"
KS = (1, 5, 10)


class SmallEncoder:
    """Random features of a thumbnail, and of the words of a text: untrained, but not blind."""

    def __init__(self, dim: int = 32, seed: int = 0) -> None:
        self._seed = seed
        self._pixels = np.random.default_rng(seed).standard_normal((8 * 8 * 3, dim))
        self._words: dict[str, np.ndarray] = {}

    def encode(self, inputs: list[Any], /) -> np.ndarray:
        return np.stack([self._text(item) if isinstance(item, str) else self._image(item) for item in inputs])

    def _image(self, image: Image.Image) -> np.ndarray:
        pixels = (
            np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.NEAREST), dtype=np.float64).ravel() / 255
            - 0.5
        )
        return (pixels @ self._pixels).astype(np.float32)

    def _text(self, text: str) -> np.ndarray:
        return np.mean([self._word(word) for word in text.split()], axis=0).astype(np.float32)

    def _word(self, word: str) -> np.ndarray:
        if word not in self._words:
            digest = hashlib.blake2b(f"{self._seed}{word}".encode(), digest_size=8).digest()
            rng = np.random.default_rng(int.from_bytes(digest, "big"))
            self._words[word] = rng.standard_normal(self._pixels.shape[1])
        return self._words[word]


def png(colour: tuple[int, int, int], noise: int = 0) -> bytes:
    pixels = np.clip(np.array(colour) + np.random.default_rng(noise).normal(0, 20, (10, 12, 3)), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(columns: dict[str, list[Any]]) -> Rows:
    return Rows(datasets.Dataset.from_dict(columns), name="table", fingerprint="0")


def dense(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Every metric by full sorting: of equal scores (they are whole multiples of 1e-9) the wrong answers come first."""
    order = np.argsort(1e-10 * right - scores, axis=1)
    hits = np.take_along_axis(right, order, axis=1)
    total, upto, first = hits.sum(1), hits.cumsum(1), hits.argmax(1) + 1
    gain = 1 / np.log2(np.arange(hits.shape[1]) + 2)
    precision = upto / (np.arange(hits.shape[1]) + 1)
    found = {"mrr": (1 / first).mean(), "median_rank": np.median(first)}
    found["map"] = ((hits * precision).sum(1) / total).mean()
    for k in KS:
        found[f"hit@{k}"] = (first <= k).mean()
        found[f"recall@{k}"] = (upto[:, k - 1] / total).mean()
        found[f"precision@{k}"] = precision[:, k - 1].mean()
        found[f"ndcg@{k}"] = ((hits * gain)[:, :k].sum(1) / gain.cumsum()[np.minimum(k, total) - 1]).mean()
        found[f"map@{k}"] = ((hits * precision)[:, :k].sum(1) / total).mean()
    return {name: float(value) for name, value in found.items()}


def cosines(encoder: Any, images: list[Image.Image], captions: list[str]) -> np.ndarray:
    """(N, T) in float64, rounded so that equal vectors tie exactly."""
    image, text = (encoder.encode(items).astype(np.float64) for items in (images, captions))
    image, text = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text))
    return np.round(image @ text.T, 9)


needs_flickr = pytest.mark.skipif(not FLICKR.is_file(), reason=f"{FLICKR} is not there")


@needs_flickr
def test_a_thousand_photographs_with_five_captions_equal_a_plain_reference() -> None:
    equals_the_reference_on_flickr(SmallEncoder(), tolerance=1e-12)


@needs_flickr
@pytest.mark.slow
def test_a_model_of_product_images_on_photographs_equals_a_plain_reference(tmp_path: Path) -> None:
    """Trained for a moment, and untrained. Near ties may come in another order in float64 than in float32."""
    config = Path(__file__).parents[3] / "configs" / "clip_fashion.yaml"
    fashion = FLICKR.parent / "fashion"
    settings = [f"data.train.source={fashion}", "evaluation.sources={}", "training.epochs=0.15"]
    for name, rate in (("trained", 3e-3), ("untrained", 1e-12)):
        run = train(config, out=tmp_path / name, overrides=[*settings, f"training.lr={rate}"], show_progress=False)
        encoder = run.model
        encoder.set_compute("float32")
        equals_the_reference_on_flickr(encoder, tolerance=1e-2)


def equals_the_reference_on_flickr(encoder: Any, tolerance: float) -> None:
    rows = open_source(FLICKR)
    scores = retrieval_of_rows(encoder, rows, text="captions", ks=KS, bootstrap=0)
    images = [Image.open(io.BytesIO(data)) for data in rows.images("image", range(len(rows)))]
    listed = [list(map(str, value)) for value in rows.texts("captions")]
    captions = np.array([caption for row in listed for caption in row])
    assert (scores["image_to_text"].queries, scores["text_to_image"].queries) == (1000, 5000)
    owner = np.repeat(np.arange(1000), 5)
    table = cosines(encoder, images, captions.tolist())
    code = np.unique(text_identities(encoder, captions.tolist()), return_inverse=True)[1]  # equal where read alike
    said = np.zeros((1000, code.max() + 1), dtype=bool)
    said[owner, code] = True  # no two of the photographs are equal, some captions are
    right = said[:, code]
    assert right.sum() > 5000
    assert scores["image_to_text"].metrics == pytest.approx(dense(table, right), abs=tolerance, rel=5 * tolerance)
    assert scores["text_to_image"].metrics == pytest.approx(dense(table.T, right.T), abs=tolerance, rel=5 * tolerance)
    own = owner == np.arange(1000)[:, None]
    for name, side, answers in (("text", table, own), ("image", table.T, own.T)):
        expected = dense(side, answers)
        found = scores["image_to_text" if name == "text" else "text_to_image"].clip_benchmark
        theirs = {f"{name}_retrieval_recall@{k}": expected[f"hit@{k}"] for k in KS}
        assert found == pytest.approx(theirs, abs=tolerance, rel=5 * tolerance)


@pytest.fixture
def colours() -> Rows:
    """Nine images of three colours, of which one is broken and one has no caption."""
    shades = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
    names = [list(shades)[number % 3] for number in range(9)]
    images = [png(shades[name], number) for number, name in enumerate(names)]
    captions = [[f"a {name} thing", f"something {name} {number}"] for number, name in enumerate(names)]
    numbers = [{"red": 2, "green": 0, "blue": 1}[name] for name in names]
    images[4], captions[5] = b"no image", [" "]
    return table({"image": images, "text": captions, "colour": names, "number": numbers, "id": list("abcdefghi")})


def test_equal_captions_are_right_but_not_for_clip_benchmark(colours: Rows) -> None:
    encoder = SmallEncoder()
    scores = retrieval_of_rows(encoder, colours, ks=(1, 2), bootstrap=0)
    kept = [0, 1, 2, 3, 6, 7, 8]
    assert scores["image_to_text"].query_ids == [list("abcdefghi")[row] for row in kept]
    assert scores["text_to_image"].query_ids[:4] == ["a#0", "a#1", "b#0", "b#1"]
    assert scores["image_to_text"].relevant.tolist() == [4, 3, 3, 4, 4, 3, 3]  # of 3, 2 and 2 equal captions
    captions = [caption for row in kept for caption in colours.texts("text")[row]]  # type: ignore[union-attr]
    images = [Image.open(io.BytesIO(colours.images("image", [row])[0])) for row in kept]  # type: ignore[arg-type]
    table, own = cosines(encoder, images, captions), np.repeat(np.arange(7), 2) == np.arange(7)[:, None]
    for way, side, answers in (("image_to_text", table, own), ("text_to_image", table.T, own.T)):
        for k in (1, 2):
            expected = np.mean([
                (row >= row[right].max()).sum() - (row[right] == row[right].max()).sum() < k
                for row, right in zip(side, answers, strict=True)
            ])  # fmt: skip
            (found,) = (value for name, value in scores[way].clip_benchmark.items() if name.endswith(f"@{k}"))
            assert found == pytest.approx(expected)


def test_our_hits_are_clip_benchmarks_recalls() -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="clip-benchmark is not installed")
    rng, owner = np.random.default_rng(0), np.repeat(np.arange(20), 3)
    image, text = torch.from_numpy(rng.standard_normal((20, 6))), torch.from_numpy(rng.standard_normal((60, 6)))
    scores = retrieval_pairs(image, text, owner, KS, bootstrap=0)
    table = F.normalize(text) @ F.normalize(image).mT
    right = torch.from_numpy(owner[:, None] == np.arange(20))
    for way, side, answers in (("image_to_text", table.mT, right.mT), ("text_to_image", table, right)):
        for k in KS:
            recall = (theirs.recall_at_k(side, answers, k) > 0).double().mean().item()
            assert scores[way].metrics[f"hit@{k}"] == pytest.approx(recall)


def test_labels_may_be_names_or_numbers(colours: Rows, tmp_path: Path) -> None:
    encoder = SmallEncoder()
    by_name = zero_shot_of_rows(encoder, colours, label="colour", templates=["{}", "photo"])
    (tmp_path / "classes.txt").write_text("green\nblue\nred\nviolet\n")
    by_number = zero_shot_of_rows(encoder, colours, label="number", classes=tmp_path / "classes.txt")
    named = zero_shot_of_rows(encoder, colours, label="colour", classes=["green", "blue", "red", "violet"])
    assert (by_name.images, by_name.classes, by_number.classes, by_number.empty_classes) == (8, 3, 4, 1)
    assert by_number.to_dict() == named.to_dict()
    assert by_number.query_ids == list("abcdfghi")
    with pytest.raises(MmclError, match="table: column 'number', row 0: class 2 is out of range; the 2 classes"):
        zero_shot_of_rows(encoder, colours, label="number", classes=["a", "b"])
    with pytest.raises(MmclError, match="table: column 'colour', row 0: 'red' is none of the 2 classes"):
        zero_shot_of_rows(encoder, colours, label="colour", classes=["a", "b"])


def test_class_names_and_captions_that_the_model_reads_as_the_same_are_one(colours: Rows, caplog) -> None:
    class Uncased(SmallEncoder):
        def _text(self, text: str) -> np.ndarray:
            return super()._text(text.lower())

        def text_identities(self, texts: list[str], prompt: str | None = None) -> np.ndarray:
            return np.unique([" ".join(text.lower().split()) for text in texts], return_inverse=True)[1]

    names = [str(name) for name in colours.texts("colour")]
    table = datasets.Dataset.from_dict(
        {
            "image": [png((200, 0, 0), noise) for noise in range(len(names))],
            "colour": names,
            "mixed": [name.upper() if row % 2 else f"{name} " for row, name in enumerate(names)],
        }
    )
    rows = Rows(table, name="table", fingerprint="")
    plain = zero_shot_of_rows(Uncased(), rows, label="colour")
    mixed = zero_shot_of_rows(Uncased(), rows, label="mixed")
    assert mixed.metrics == plain.metrics
    assert "class names in column 'mixed' read the same as another" in caplog.text
    found = retrieval_of_rows(Uncased(), rows, text="mixed", bootstrap=0)["image_to_text"]
    assert found.relevant.tolist() == [names.count(name) for name in names]


def test_copies_of_the_training_images_are_warned_of_wherever_they_lie(tmp_path: Path, caplog) -> None:
    (tmp_path / "elsewhere").mkdir()
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png((200, 40 * number, 0), number))
        (tmp_path / "elsewhere" / f"copy {number}.png").write_bytes(png((200, 40 * number, 0), number % 3))
    (tmp_path / "train.csv").write_text("image,text\n" + "".join(f"{n}.png,text {n}\n" for n in range(4)))
    encoder = SmallEncoder()
    encoder.card = {"data": {"source": str(tmp_path / "train.csv")}}
    names = [f"elsewhere/copy {n}.png" for n in range(4)]
    (tmp_path / "dev.csv").write_text("image,text\n" + "".join(f"{name},word {name}\n" for name in names))
    embedded = {"image": [(tmp_path / name).read_bytes() for name in names], "text": names}
    for rows in (
        open_source(tmp_path / "dev.csv"),
        Rows(datasets.Dataset.from_dict(embedded), name="embedded", fingerprint=""),
    ):
        caplog.clear()
        retrieval_of_rows(encoder, rows, bootstrap=0)
        assert f"{rows.name}: 3 of 4 rows stand in what the model was trained on" in caplog.text


@pytest.mark.parametrize("kind", ["table", "texts"])
def test_rows_that_the_model_was_trained_on_are_warned_of(tmp_path: Path, caplog, kind: str) -> None:
    def write(name: str, numbers: list[int]) -> Rows:
        lines = [f"{n}.png,image {n},answer {n}" for n in numbers]
        (tmp_path / name).write_text("\n".join(["image,text,answer", *lines]) + "\n")
        return open_source(tmp_path / name)

    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png((200, 40 * number, 0), number))
    train, other, new = write("train.csv", [0, 1, 2, 3]), write("other.csv", [2, 3, 4]), write("new.csv", [4, 5])
    encoder = SmallEncoder()
    encoder.card = {"data": {"source": str(tmp_path / "train.csv")}}
    for rows, said in (
        (train, "train.csv: 4 of 4 rows stand in"),
        (other, "other.csv: 2 of 3 rows stand in"),
        (new, ""),
    ):
        caplog.clear()
        if kind == "table":
            retrieval_of_rows(encoder, rows, bootstrap=0)
        else:
            retrieval_of_texts(encoder, rows, query="text", document="answer", bootstrap=0)
        assert said in caplog.text
        assert bool(said) == ("trained on" in caplog.text)


def test_diagnostics_of_pairs_or_of_one_column(colours: Rows) -> None:
    encoder = SmallEncoder()
    both = diagnostics_of_rows(encoder, colours)
    assert both.between is not None
    assert (both.spaces["image"].rows, both.between.pairs) == (7, 14)
    assert list(diagnostics_of_rows(encoder, colours, text=None).spaces) == ["image"]
    texts = diagnostics_of_rows(encoder, colours, image=None).spaces["text"]
    assert texts.rows == 16  # without an image, that of a broken one counts
    with pytest.raises(MmclError, match="name a column"):
        diagnostics_of_rows(encoder, colours, image=None, text=None)


def test_two_models_on_the_same_rows(colours: Rows) -> None:
    a, b = (scores_of_rows(SmallEncoder(seed=seed), colours, text="text", label="colour", ks=(1,)) for seed in (0, 1))
    found = compare(a, b)
    assert {name.split("/")[0] for name in found.differences} == {"image_to_text", "text_to_image", "zero_shot"}
    assert found.differences["text_to_image/hit@1"].groups == 7
    other = scores_of_rows(SmallEncoder(), colours.select(range(8)), text="text", label="colour", ks=(1,))
    with pytest.raises(MmclError, match="7 and 6 queries"):
        compare(a, other)

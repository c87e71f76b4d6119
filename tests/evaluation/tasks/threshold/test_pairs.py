from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mmcl.data.sources import open_source
from mmcl.evaluation import open_sts, sts, threshold, threshold_of_pairs
from mmcl.evaluation.tasks.threshold.pairs import threshold_of_columns
from mmcl.runtime.errors import MmclError


@pytest.fixture
def table() -> dict[str, list]:
    """800 pairs of sentences of six words; those with many in common are mostly the same."""
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(80)]
    rows: dict[str, list] = {"sentence1": [], "sentence2": [], "score": []}
    for _ in range(800):
        first, common = rng.choice(words, 6, replace=False), rng.integers(0, 7)
        second = np.concatenate([first[:common], rng.choice(words, 6 - common)])
        values = (" ".join(first), " ".join(second), float(np.clip(common * 5 / 6 + rng.normal(0, 0.3), 0, 5)))
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return rows


def test_pairs_with_scores_give_what_their_cosines_give(table, hashed) -> None:
    found = threshold_of_pairs(hashed(), pa.table(table), same_from=4, precision=0.9)
    alike = sts(hashed(), pa.table(table), bootstrap=0).similarities["the table"]
    same = np.array(table["score"]) >= 4
    assert found.to_dict() == threshold(alike, same, 0.9).to_dict()
    assert found.threshold is not None
    assert found.same == same.sum()


def test_scores_of_0_and_1_need_no_limit_and_others_do(table, hashed) -> None:
    graded = threshold_of_pairs(hashed(), open_sts(pa.table(table)), same_from=4)
    labels = table | {"score": [float(score >= 4) for score in table["score"]]}
    assert threshold_of_pairs(hashed(), pa.table(labels)).to_dict() == graded.to_dict()
    with pytest.raises(MmclError, match="its scores go from 0 to 5; say from which on a pair is the same: --same-from"):
        threshold_of_pairs(hashed(), pa.table(table))
    with pytest.raises(MmclError, match="are different; give some of both kinds"):
        threshold_of_pairs(hashed(), pa.table(table), same_from=6)


def test_an_encoder_without_sense_gives_no_number(table) -> None:
    class Random:
        def encode(self, texts):
            return np.random.default_rng(0).standard_normal((len(texts), 64)).astype(np.float32)

    apart = [a != b for a, b in zip(table["sentence1"], table["sentence2"], strict=True)]  # others have a cosine of 1
    rows = {name: [value for value, kept in zip(values, apart, strict=True) if kept] for name, values in table.items()}
    found = threshold_of_pairs(Random(), pa.table(rows), same_from=4)
    assert [cut.threshold for cut in found.cuts] == [None] * 4


class Colours:
    """The mean colour of an image; a text's is named in it."""

    def encode(self, inputs):
        vectors = [
            np.array([float(value) for value in item.split()])
            if isinstance(item, str)
            else np.asarray(item).mean((0, 1))
            for item in inputs
        ]
        return np.stack(vectors).astype(np.float32) - 127


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """240 pairs of images in a table; those that are the same have about the same colour. One is missing."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    lines = ["photo,other,words,same"]
    for row in range(240):
        colour = rng.integers(0, 256, 3)
        second = np.clip(colour + rng.normal(0, 15, 3), 0, 255) if row % 2 else rng.integers(0, 256, 3)
        for side, value in enumerate((colour, second)):
            pixels = np.broadcast_to(value.astype(np.uint8), (4, 4, 3))
            Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{row}-{side}.png")
        words = " ".join(f"{value:.0f}" for value in second)
        lines.append(f"{row}-0.png,{row}-1.png,{words},{row % 2}")
    (folder / "7-1.png").unlink()
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return open_source(folder / "pairs.csv")


@pytest.mark.parametrize(("other", "modality", "pairs"), [("other", "image", 239), ("words", "text", 240)])
def test_pairs_of_images_and_of_images_with_texts(images, other, modality, pairs) -> None:
    found = threshold_of_columns(
        Colours(), images, ("photo", other), ("image", modality), score="same", precision=0.8, confidence=0.9
    )
    assert (found.pairs, found.same) == (pairs, 120 - (pairs == 239))
    assert 0.5 < found.threshold < 1
    assert found.area > 0.9


def test_columns_that_will_not_do_are_named(images) -> None:
    with pytest.raises(MmclError, match="no column 'label'"):
        threshold_of_columns(Colours(), images, ("photo", "other"), ("image", "image"), score="label")
    with pytest.raises(MmclError, match="column 'words' of modality 'table'"):
        threshold_of_columns(Colours(), images, ("photo", "words"), ("image", "table"), score="same")

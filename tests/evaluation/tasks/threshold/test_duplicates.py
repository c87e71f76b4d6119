from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmcl.data.sources import open_source
from mmcl.evaluation import threshold_of_duplicates
from mmcl.evaluation.tasks.threshold.duplicates import threshold_of_items
from mmcl.runtime.errors import MmclError


def clustered(groups: int = 200, each: int = 3, dim: int = 32, noise: float = 0.4, alone: int = 500):
    """Vectors around the centre of their group, and some of no group."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((groups, dim)), each, axis=0)
    vectors = np.concatenate([centres + noise * rng.standard_normal(centres.shape), rng.standard_normal((alone, dim))])
    return vectors.astype(np.float32), [*np.repeat(np.arange(groups), each).tolist(), *[None] * alone]


def test_a_threshold_for_all_pairs_of_a_corpus_is_as_precise_among_all_of_them() -> None:
    vectors, groups = clustered()
    found = threshold_of_duplicates(vectors, groups, 0.9, negatives=200_000)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names = np.array([-1 - place if group is None else group for place, group in enumerate(groups)])
    upper = np.triu_indices(len(unit), 1)
    cosines, same = (unit @ unit.T)[upper], (names[:, None] == names)[upper]
    assert found.prevalence == pytest.approx(same.mean())
    assert found.same == 200
    precision = same[cosines >= found.threshold].mean()
    low, high = found.cuts[0].intervals["precision"]
    assert precision == pytest.approx(0.9, abs=0.15)
    assert low <= precision <= high
    recall = (cosines[same] >= found.threshold).mean()
    low, high = found.cuts[0].intervals["recall"]
    assert low <= recall <= high


def test_few_random_pairs_cannot_show_what_a_corpus_takes() -> None:
    vectors, groups = clustered()
    found = threshold_of_duplicates(vectors, groups, 0.9, negatives=500)
    assert found.threshold is None
    assert "which is too few where one in " in found.cuts[0].reason
    assert threshold_of_duplicates(vectors, groups, 0.9, negatives=500, prevalence=0.5).threshold is not None


def test_vectors_without_sense_give_no_number() -> None:
    vectors, groups = clustered()
    random = np.random.default_rng(1).standard_normal(vectors.shape)
    assert all(cut.threshold is None for cut in threshold_of_duplicates(random, groups, negatives=5000).cuts)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([None] * 10, "10 items, no two of them are the same"),
        (["a"] * 10, "10 items, all of them are the same"),
        (["a"] * 9, r"vectors \(10, 4\) and 9 groups"),
    ],
)
def test_mistakes_get_one_line(groups, said) -> None:
    with pytest.raises(MmclError, match=said):
        threshold_of_duplicates(np.ones((10, 4)), groups)
    with pytest.raises(MmclError, match="vector 3 has a NaN"):
        threshold_of_duplicates(np.where(np.arange(10)[:, None] == 3, np.nan, np.ones((10, 4))), ["a"] * 10)


def test_texts_with_the_same_words_are_duplicates_and_equal_ones_count_once(tmp_path, hashed) -> None:
    rng = np.random.default_rng(0)
    lines = ["title,product"]
    for row in range(300):
        words = " ".join(f"w{number}" for number in rng.choice(500, 6, replace=False))
        lines += [f"{words},{row}"] * 2
        if row < 100:
            lines.append(f"{words.replace(' w', ' W', 1)},{row}")
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    rows = open_source(tmp_path / "items.csv")
    options = {"negatives": 20_000, "prevalence": 0.3, "precision": 0.9}
    found = threshold_of_items(hashed(dim=64), rows, "title", **options)
    assert found.same == 100
    assert found.threshold is not None
    assert threshold_of_items(hashed(dim=64), rows, "title", groups="product", **options).to_dict() == found.to_dict()


def test_images_that_look_the_same_are_duplicates(tmp_path) -> None:
    class Pixels:
        def encode(self, images):
            return np.stack([np.asarray(image.resize((8, 8)), dtype=np.float32).ravel() - 127 for image in images])

    rng = np.random.default_rng(0)
    lines = ["image"]
    for row in range(120):
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).resize(
            (48, 48), Image.Resampling.BICUBIC
        )
        image.save(tmp_path / f"{row}.png")
        image.save(tmp_path / f"{row}.jpg", quality=80)
        lines += [f"{row}.png", f"{row}.jpg"]
    (tmp_path / "images.csv").write_text("\n".join(lines) + "\n")
    found = threshold_of_items(
        Pixels(), open_source(tmp_path / "images.csv"), "image", "image", negatives=5000, prevalence=0.2, precision=0.9
    )
    assert found.same > 100
    assert 0.1 < found.threshold < 0.99

from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl.evaluation import threshold
from mmcl.formats.threshold import FILE, keep_threshold, read_threshold
from mmcl.runtime.errors import MmclError


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    same = rng.random(2000) < 0.4
    return threshold(rng.normal(2.0 * same), same, (0.9, 0.999))


@pytest.fixture
def folder(tmp_path):
    """Stands for a model folder of ours."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mmcl.json").write_text("{}")
    (tmp_path / "model" / "README.md").write_text("# A model\n\n## Texts\n\nabout texts\n")
    return tmp_path / "model"


def record(found):
    return {"encoder": {"weights": "abc", "prompt": ""}, "data": "pairs", **found.to_dict()}


def test_what_is_kept_is_read_of_the_model_and_of_its_run(folder, found) -> None:
    assert keep_threshold(folder, "text-text", record(found)) == folder / FILE
    for place in (folder, folder.parent, str(folder)):
        kept = read_threshold(place)
        assert kept.above(0.9) == found.at(0.9).threshold
        assert kept.above() == found.at(None).threshold
        assert kept.encoder == {"weights": "abc", "prompt": ""}
        grid = np.linspace(-1, 3, 9)
        np.testing.assert_allclose(kept.calibration(grid), found.calibration(grid))
    with pytest.raises(MmclError, match=r"there is no threshold, since precision 0.999 cannot be shown with 95%"):
        kept.above(0.999)
    with pytest.raises(MmclError, match=r"precision 0.8 was not measured, but 0.9, 0.999, best F1"):
        kept.above(0.8)


def test_thresholds_of_other_towers_stay_and_the_card_names_each(folder, found) -> None:
    keep_threshold(folder, "text-text", record(found))
    card = (folder / "README.md").read_text()
    assert card.startswith("# A model\n\n## Texts\n\nabout texts\n\n## Match threshold\n\n`threshold.json` holds")
    assert f"| text-text, precision 0.9 | {found.at(0.9).threshold:.6g} | 0." in card
    assert "| text-text, precision 0.999 | none | | |" in card
    keep_threshold(folder, "image-text", record(found))
    keep_threshold(folder, "text-text", record(found))
    assert read_threshold(folder, "image-text").above(0.9) == read_threshold(folder).above(0.9)
    assert (folder / "README.md").read_text().count("## Match threshold") == 1
    assert (folder / "README.md").read_text().count("| image-text, best F1 |") == 1


def test_folders_without_a_threshold_or_with_a_damaged_one_are_told(folder, found, tmp_path) -> None:
    with pytest.raises(MmclError, match="no match threshold is kept there; measure one with: mmcl eval threshold"):
        read_threshold(folder)
    with pytest.raises(MmclError, match=r"has no mmcl.json"):
        keep_threshold(tmp_path, "text-text", record(found))
    keep_threshold(folder, "text-text", record(found))
    with pytest.raises(MmclError, match="holds thresholds of text-text, none of image-image"):
        read_threshold(folder, "image-image")
    content = json.loads((folder / FILE).read_text())
    for damage, said in (
        ({"format_version": 99}, "a newer one; upgrade mmcl"),
        ({"format_version": "x"}, "damaged"),
        ({"thresholds": {"text-text": {"cuts": 3}}}, "damaged"),
        ({"thresholds": {"text-text": content["thresholds"]["text-text"] | {"cuts": [{}]}}}, "damaged"),
    ):
        (folder / FILE).write_text(json.dumps(content | damage))
        with pytest.raises(MmclError, match=said):
            read_threshold(folder)

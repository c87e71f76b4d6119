"""The README's snippets run as they stand, and its configs are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import mmcl
from mmcl.config.load import load_config
from mmcl.data import samples

ROOT = Path(__file__).parents[1]
ON_THE_HUB = "ViT-B-32/laion2b_s34b_b79k"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run that the snippets go on from, though hardly trained."""
    folder = tmp_path_factory.mktemp("readme")
    changes = ["training.epochs=0.1", "evaluation={}", "model.image.args.channels=[8,8,8,8]", "training.device=cpu"]
    mmcl.train(load_config(ROOT / "configs" / "clip_shapes.yaml", changes), out=folder / "runs" / "clip_shapes")
    return folder


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: re.search(r"load\(\"([^\"]+)", code)[1])
def test_a_snippet_runs_from_its_first_import_to_its_last_line(code, folder, monkeypatch):
    opened = mmcl.load

    def load(name, *rest, **options):  # a model of the hub is not at hand, and any with both towers will do
        return opened("runs/clip_shapes" if name == ON_THE_HUB else name, *rest, **options)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(mmcl, "load", load)
    try:
        if "sample:minilm" in code:
            samples.get("minilm", show_progress=False)
    except samples.UnreachableError as error:
        pytest.skip(str(error))
    variables = {}
    exec(compile(code, "README.md", "exec"), variables)
    if "evaluation.retrieval" in code:
        assert variables["scores"].metrics["hit@1"] == 1.0
    if "Index.build" in code:
        assert variables["ids"].tolist()[0][0] in ("circle", "drawing")


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: text.split("\n")[0].split("#")[0].strip())
def test_a_config_is_valid(text):
    values = yaml.safe_load(text)
    config = load_config({"data": {"train": {"source": "pairs.csv"}}, "model": {"image": {}, "text": {}}} | values)
    assert set(values) <= config.model_fields_set


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_config_that_needs_data_of_ones_own_says_so_first(path):
    values = yaml.safe_load(path.read_text())
    judged = values.get("evaluation", {}).get("sources", {})
    sources = [values["data"]["train"], *values["data"].get("mix", []), *judged.values()]
    own = [of["source"] for of in sources if re.search(r"\{|\.(csv|parquet|jsonl)$|^[\w-]+$", of["source"])]
    assert path.read_text().startswith("# Needs data of your own: ") == bool(own), own

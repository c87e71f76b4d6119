"""Encoding on a Ray cluster of two nodes on this machine: the shards of the plain run, also if a node is killed."""

from __future__ import annotations

import io
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

pytest.importorskip("ray")

from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.data.sources.tar.rows import open_rows
from mmcl.data.sources.tar.write import write_shards
from mmcl.encoding import Columns, Layout, encode_source, open_vectors
from mmcl.encoding.corpora.folder import CLAIM
from mmcl.encoding.encoder import Encoder
from mmcl.encoding.load import load
from mmcl.encoding.ray_engine import RayEngine, Recipe, _encode
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

pytestmark = pytest.mark.slow
TEXTS = [f"sentence number {n} of many" for n in range(2_000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of texts and images, a table of texts, a table of images, and tar shards of both."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    images, image = build_image_tower(
        ImageTowerConfig(name="timm:resnet10t", args={"channels": [8, 8, 8, 8], "stem_width": 8}), ImageConfig(size=32)
    )
    texts, text = build_text_tower(
        TextTowerConfig(layers=2, width=64, heads=2), train_tokenizer(TEXTS[:100], TokenizerConfig(vocab_size=60), 20)
    )
    embedders = {"image": ImageEmbedder(images, image, Head(HeadConfig(), image.width, 8))}
    embedders["text"] = TextEmbedder(texts, text, Head(HeadConfig(), 64, 8))
    Encoder(Towers(embedders, 8, "tiny")).eval().save(folder / "model")
    pq.write_table(pa.table({"text": [*TEXTS[:10], "", *TEXTS[10:]]}), folder / "texts.parquet")
    pngs = [_png(n) for n in range(60)]
    pq.write_table(pa.table({"image": [*pngs[:7], b"no image", *pngs[7:]]}), folder / "images.parquet")
    write_shards(({"png": png, "txt": text} for png, text in zip(pngs, TEXTS, strict=False)), folder, 20)
    return folder


def _png(shade):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(shade).integers(0, 255, (40, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else whatever else runs here comes first
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def second(cluster):
    node = cluster.add_node(num_cpus=1)
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


def recipe(folder, out, source="texts.parquet", column="text", rows=100):
    loading = {"device": "cpu", "dtype": "float32"}
    return Recipe(
        str(folder / "model"),
        str(folder / source),
        Columns(column),
        str(out),
        loading=loading,
        layout=Layout(shard_rows=rows, batch_rows=min(rows, 50)),
    )


def plain(recipe, out):
    rows = open_rows(recipe.source)
    encode_source(load(recipe.model, **recipe.loading), rows, recipe.columns, out, layout=recipe.layout)
    return contents(out)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def on_ray(recipe, cluster, out):
    job = recipe.open()
    RayEngine(recipe, cluster.address)(job, False)
    assert job.missing() == []
    job.finish()
    return contents(out)


def works(node, out):
    """Whether a process of a node is in the middle of a range, by the process number in its claim."""
    raylets = {each.process.pid for each in node.all_processes["raylet"]}
    claims = [path.read_text() for path in out.glob(f".shard-*{CLAIM}")]
    return any(_parent(claim.split()[0]) in raylets for claim in claims if claim)


def _parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_cluster_that_is_away_is_said(folder, tmp_path):
    wanted = recipe(folder, tmp_path / "ray")
    with pytest.raises(MmclError, match=r"--address 127\.0\.0\.1:1: no Ray cluster answers there"):
        RayEngine(wanted, "127.0.0.1:1")(wanted.open(), False)


def test_a_node_that_is_killed_costs_nothing(folder, cluster, second, tmp_path):
    wanted = recipe(folder, tmp_path / "ray")
    killed = threading.Event()

    def kill():
        end = time.monotonic() + 300
        while time.monotonic() < end:
            try:
                midway = works(second, tmp_path / "ray")
            except OSError:
                continue
            if midway:
                cluster.remove_node(second, allow_graceful=False)
                killed.set()
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    found = on_ray(wanted, cluster, tmp_path / "ray")
    killer.join()
    assert killed.is_set()
    assert found == plain(wanted, tmp_path / "plain")
    assert len(open_vectors(tmp_path / "ray")) == len(TEXTS)


@pytest.mark.parametrize(
    ("source", "column"), [("images.parquet", "image"), ("{00000..00002}.tar", "image"), ("{00000..00002}.tar", "text")]
)
def test_images_and_tar_shards(folder, cluster, second, tmp_path, source, column):
    wanted = recipe(folder, tmp_path / "ray", source, column, rows=15)
    assert on_ray(wanted, cluster, tmp_path / "ray") == plain(wanted, tmp_path / "plain")


def test_an_error_on_another_machine_is_its_one_line(folder, cluster, tmp_path):
    wanted = recipe(folder, tmp_path / "ray", "images.parquet", "image", rows=15)
    wanted = replace(wanted, settings={"on_error": "fail"})
    with pytest.raises(MmclError, match=r"images\.parquet: row 7 .*column 'image'"):
        on_ray(wanted, cluster, tmp_path / "ray")


def test_a_machine_that_does_not_see_the_folder_says_so(folder, tmp_path):
    elsewhere = recipe(folder, tmp_path / "nowhere")
    assert re.search(r": .*nowhere is not there; name a folder", _encode({"number": 0}, elsewhere)["error"])
    assert not (tmp_path / "nowhere").exists()

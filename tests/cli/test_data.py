"""mmcl data: what the check prints and writes."""

from __future__ import annotations

import json
import re
import tarfile

from PIL import Image
from typer.testing import CliRunner

from mmcl.cli.data import app
from mmcl.data.sources.tar.shards import list_shards


def test_check_prints_a_table_and_advice_and_writes_every_number(tmp_path):
    (tmp_path / "t.csv").write_text("id,text\na,a dog\nb,a dog\nc,\n")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "t.csv"), "--json", str(tmp_path / "t.json")])
    assert result.exit_code == 0
    assert re.search(r"rows without a caption +1: c", result.stdout)
    assert "1 (50.00%) captions repeat another" in result.stdout
    assert "there is no 'image' to read; name one of id, text with --image" in result.stdout
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["captions"]["most_frequent"] == [{"text": "a dog", "count": 2}]
    assert len(written["advice"]) == 2


def test_check_reads_a_table_with_a_separator_whose_images_lie_below_a_root(mmcl_, tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "t[1].csv").write_text("image^text\na.png^one\nb.png^two\n")
    (tmp_path / "t1.csv").write_text("image^text\na.png^another\n")
    options = ("--separator", "^", "--image-root", tmp_path / "images", "--json", tmp_path / "found.json")
    code, _, err = mmcl_("data", "check", tmp_path / "t[1].csv", *options)
    assert code == 0, err
    facts = json.loads((tmp_path / "found.json").read_text())
    assert (facts["rows"], facts["images"]["readable"], facts["captions"]["count"]) == (2, 2, 2)


def test_commands_as_a_source_run_only_where_the_command_line_says_so(mmcl_, tmp_path, monkeypatch):
    from mmcl.data.sources.tar.write import write_shards

    monkeypatch.setattr("mmcl.data.sources.tar.shards._pipes_allowed", False)
    (shard,) = write_shards([{"txt": "a cat"}, {"txt": "a dog"}], tmp_path)
    code, _, stderr = mmcl_("data", "check", f"pipe:cat {shard}", "--text", "txt")
    assert code == 2
    assert "--allow-pipe" in stderr
    code, _, stderr = mmcl_("data", "check", f"pipe:cat {shard}", "--text", "txt", "--allow-pipe")
    assert code == 0
    assert f"shell commands are run to read shards (1): pipe:cat {shard}" in " ".join(stderr.split())


def test_a_check_of_a_config_may_run_its_commands_when_asked_to(mmcl_, tmp_path, monkeypatch):
    monkeypatch.setattr("mmcl.data.sources.tar.shards._pipes_allowed", False)
    listed = []
    monkeypatch.setattr("mmcl.training.check_config.check_config", lambda _: listed.append(list_shards("pipe:true")))
    monkeypatch.setattr("mmcl.config.load.load_config", lambda *_: None)
    for flags in ([], ["--allow-pipe"]):
        mmcl_("config", "check", tmp_path / "a.yaml", *flags)
    assert listed == [["pipe:true"]]


def test_errors_about_what_to_read_name_the_option(mmcl_, tmp_path):
    (tmp_path / "rows.csv").write_text("photo,said\na.png,one\n")
    with tarfile.open(tmp_path / "said.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0.said"))
    for source, said in (
        ("rows.csv", "name which of photo, said to read with --image or --text"),
        ("said.tar", "they have said; a column may be made of these; name another with --text"),
    ):
        code, _, err = mmcl_("data", "check", tmp_path / source)
        assert code == 2
        assert said in err
        assert "data.columns" not in err


def test_show_draws_what_a_model_sees(mmcl_, tmp_path):
    for number in range(4):
        Image.new("RGB", (20, 16), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "t.csv").write_text("image\n" + "".join(f"{number}.png\n" for number in range(4)))
    (tmp_path / "c.yaml").write_text(
        f"method: {{name: simclr}}\ndata: {{train: {{source: {tmp_path / 't.csv'}}}, image: {{size: 16}}}}\n"
        "model: {dim: 8, image: {name: 'timm:resnet10t', args: {channels: [4, 4, 4, 4], stem_width: 4}}}\n"
        "training: {batch_size: 2}\n"
    )
    out = tmp_path / "views.png"
    code, printed, err = mmcl_("data", "show", tmp_path / "c.yaml", "--set", "augmentation.flip=0.5", "--out", out)
    assert code == 0, err
    assert printed.strip() == str(out)
    assert Image.open(out).size[0] > 400
    code, _, err = mmcl_("data", "show", tmp_path / "c.yaml", "--out", out)
    assert code == 2
    assert "without augmentation both views" in err

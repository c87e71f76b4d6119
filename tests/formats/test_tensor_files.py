"""Files of weights: those of every program are read alike, no code of theirs runs, and what is wrong is said."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmcl.formats.tensor_files import read_groups, read_tensors, require_finite, require_intact_weights
from mmcl.formats.torchscript import is_torchscript, read_torchscript
from mmcl.runtime.errors import MmclError


def refusal(path):
    with pytest.raises(MmclError) as caught:
        read_groups(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "weights_only" not in message
    assert "add_safe_globals" not in message
    return message


class Part(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared
        self.sizes, self.names = [1, 2], {"a": 1}
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("turned", torch.randn(3, 4).bfloat16().t())
        self.register_buffer("empty", torch.empty(0))
        self.parts = nn.ModuleList([nn.Linear(2, 3), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow = nn.Linear(5, 4).half()
        self.part = Part(self.narrow)
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.rate, self.name = 1.5, "a"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive_gives_the_tensors_that_torch_gives(tmp_path):
    torch.jit.save(torch.jit.script(Whole()), str(tmp_path / "whole.pt"))
    expected = torch.jit.load(str(tmp_path / "whole.pt")).state_dict()
    tensors = read_tensors(tmp_path / "whole.pt")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name])
        assert tensor.dtype == expected[name].dtype


class Writes(nn.Module):
    """An archive of which torch's own reader writes a file."""

    def __init__(self, path):
        super().__init__()
        self.path: str = path
        self.register_buffer("weight", torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.path, self.weight, self.training = state[0], state[1], state[2]
        torch.save(self.weight, self.path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_code_of_an_archive_does_not_run(tmp_path):
    written = tmp_path / "written"
    torch.jit.save(torch.jit.script(Writes(str(written))), str(tmp_path / "evil.pt"))
    written.unlink(missing_ok=True)
    torch.jit.load(str(tmp_path / "evil.pt"))
    assert written.exists(), "the archive does what it is here for"
    written.unlink()
    read_groups(tmp_path / "evil.pt")
    assert not written.exists()


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["archive", "legacy", "torchscript"])
def test_a_pickle_runs_nothing_and_its_object_is_named(tmp_path, form):
    path, written = tmp_path / "evil.pt", tmp_path / "written"
    if form == "torchscript":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/constants.pkl", pickle.dumps(()))
            archive.writestr("a/data.pkl", pickle.dumps(Runs(written)))
    else:
        contents = {"weight": torch.zeros(2), "other": Runs(written)}
        torch.save(contents, path, _use_new_zipfile_serialization=form == "archive")
    assert "(posix.system)" in refusal(path)
    assert not written.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive_of_odd_tensors_is_damaged(tmp_path):
    path = tmp_path / "odd.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(()))
        archive.writestr("a/data.pkl", b"cbuiltins\neval\n.")
    assert is_torchscript(path)
    with pytest.raises(pickle.UnpicklingError):
        read_torchscript(path)
    torch.jit.save(torch.jit.script(Whole()), str(path))
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "cut.pt", "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(name, data[:8] if name.endswith("data/0") else data)
    assert "cut off" in refusal(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"<html>", "a web page"),
        (b'{"error": "not found"}', "damaged"),
        (b"PK\x03\x04" + b"\0" * 200, "damaged"),
        (b"1234", "damaged"),
        (b"\0" * 1000, "damaged"),  # of a download that was not finished
        (b"\x80\x02}q\x00.", "damaged"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "damaged"),
        ((20).to_bytes(8, "little") + b"{", "damaged"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_is_no_file_of_weights_is_reported(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_reported(tmp_path, legacy, share):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "damaged" in refusal(path)


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")

    def forbid(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", forbid)
    assert "no permission" in refusal(tmp_path / "model.safetensors")
    assert "no permission" in refusal(tmp_path / "model.safetensors")


def test_numbers_of_numpy_beside_the_weights_are_plain_and_other_objects_are_named(tmp_path):
    numbers = {"loss": np.float64(1.5), "steps": np.int64(3), "done": np.bool_(True), "half": np.float16(1)}
    numbers |= {
        "name": np.str_("x"),
        "tag": np.bytes_(b"x"),
        "when": np.datetime64("2020-01-01"),
    }
    for legacy in (False, True):
        contents = {**numbers, "table": np.arange(6.0).reshape(2, 3), "state_dict": {"weight": torch.ones(2)}}
        torch.save(contents, tmp_path / "numbers.pt", _use_new_zipfile_serialization=not legacy)
        groups = read_groups(tmp_path / "numbers.pt")
        assert torch.equal(groups["state_dict"]["weight"], torch.ones(2))
        assert torch.equal(groups[""]["table"], torch.arange(6.0).reshape(2, 3).double())
        assert list(read_tensors(tmp_path / "numbers.pt")) == ["weight"]
    for odd, name in (
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.array([Runs("x")], dtype=object), "Python objects"),
    ):
        torch.save({"weight": torch.ones(2), "odd": odd}, tmp_path / "odd.pt")
        assert name in refusal(tmp_path / "odd.pt")


def test_a_single_number_of_numpys_is_a_weight_where_others_are(tmp_path):
    weights = {"weight": np.ones(2, np.float32), "logit_scale": np.array(4.5, np.float32)}
    torch.save({"best": np.array(1.0), "model": weights}, tmp_path / "weights.pt")
    groups = read_groups(tmp_path / "weights.pt")
    assert {name: list(tensors) for name, tensors in groups.items()} == {"model": ["weight", "logit_scale"]}


def test_a_suffix_that_lies_does_not_matter(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        assert torch.equal(read_tensors(tmp_path / name)["weight"], torch.ones(2))


def test_mappings_that_hold_each_other_many_times_are_read_once(tmp_path):
    node = {"weight": torch.ones(1)}
    for _ in range(60):
        node = {"a": node, "b": node}
    node["itself"] = node
    torch.save(node, tmp_path / "many.pt")
    assert len(read_groups(tmp_path / "many.pt")) <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_tensors_name(value):
    good = torch.full((3,), 3e38)  # finite, though their sum is not
    require_finite([("good", good), ("count", torch.tensor(3))], "model")
    with pytest.raises(MmclError, match=r"model: its tensor 'layer\.bias' has 1 values"):
        require_finite([("good", good), ("layer.bias", torch.tensor([1.0, value]))], "model")


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("form", ["plain", "torchscript"])
def test_few_values_repeated_without_end_are_refused(tmp_path, form):
    """A file of a kilobyte may describe a tensor that no memory holds, and a look at its values would never end."""
    path = tmp_path / "endless.pt"
    if form == "plain":
        torch.save({"weight": torch.zeros(1).expand(1 << 40)}, path)
    else:
        endless = Whole()
        endless.weight = nn.Parameter(torch.zeros(1).expand(1 << 40))
        torch.jit.save(torch.jit.script(endless), str(path))
    assert "'weight' repeats few values 1,099,511,627,776 times" in refusal(path)
    torch.save({"weight": torch.arange(3.0).expand(2, 3)}, path)
    assert read_tensors(path)["weight"].tolist() == [[0, 1, 2]] * 2


def test_a_state_of_numpy_arrays_or_within_a_pair_is_read(tmp_path):
    arrays = {"weight": np.arange(6.0).reshape(2, 3), "scale": np.array(2.5)}
    torch.save((arrays, 3), tmp_path / "pair.pt")
    tensors = read_tensors(tmp_path / "pair.pt")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "scale": 2.5,
    }


def test_a_list_of_parts_that_is_something_else_or_names_a_missing_one_is_reported(tmp_path):
    listed = tmp_path / "pytorch_model.bin.index.json"
    for content, message in (
        ("version https://git-lfs.github.com/spec/v1", r"index.json: a git-lfs pointer"),
        ('{"error": 1}', "no weight_map"),
        ('{"weight_map": {"weight": "pytorch_model-1.bin"}}', r"pytorch_model-1\.bin: the weights are missing"),
    ):
        listed.write_text(content)
        with pytest.raises(MmclError, match=message):
            require_intact_weights(tmp_path)

"""Data sets of torchvision, from files as torchvision keeps them."""

from __future__ import annotations

import hashlib
import io
import pickle

import numpy as np
import pytest
import torchvision
from PIL import Image

from mmcl.data.sources import open_source
from mmcl.data.sources.torchvision_sets import fetch
from mmcl.runtime.errors import MmclError


def idx(array: np.ndarray) -> bytes:
    """A uint8 array in the format of MNIST's files."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    """Twelve training images and five test images in FashionMNIST's files."""
    folder, random, made = tmp_path / "FashionMNIST" / "raw", np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for part, stem, count in (("train", "train", 12), ("test", "t10k", 5)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count).astype(np.uint8)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
        made[part] = images, labels
    return tmp_path, made


def pixels(rows):
    return np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in rows.images("image", range(len(rows)))])


@pytest.mark.parametrize("part", ["train", "test"])
def test_arrays_come_back_bit_for_bit_with_the_names_of_their_classes(fashion, part):
    root, made = fashion
    images, labels = made[part]
    rows = open_source(f"torchvision:FashionMNIST:{root}", split=part)
    np.testing.assert_array_equal(pixels(rows), images)
    assert rows.labels("label") == [torchvision.datasets.FashionMNIST.classes[label] for label in labels]
    assert rows.name == f"torchvision:FashionMNIST:{root} ({part})"


def test_rows_are_the_same_when_opened_again_and_others_when_the_files_change(fashion):
    root, made = fashion
    before = open_source(f"torchvision:FashionMNIST:{root}", split="train")
    again = open_source(f"torchvision:FashionMNIST:{root}", split="train")
    assert before.fingerprint == again.fingerprint
    file = root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(idx(made["train"][0][::-1].copy()))
    changed = open_source(f"torchvision:FashionMNIST:{root}", split="train")
    assert changed.fingerprint != before.fingerprint
    np.testing.assert_array_equal(pixels(changed), made["train"][0][::-1])


def test_cifar10_from_its_batches(tmp_path, monkeypatch):
    folder, random = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    images, labels = random.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), [3, 0, 1, 9, 9, 2]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images.reshape(6, -1), "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    # torchvision opens files of the checksums it knows, and no others; here, of these.
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    kind = torchvision.datasets.CIFAR10
    with pytest.raises(MmclError, match="torchvision cannot read its files"):
        open_source(f"torchvision:CIFAR10:{tmp_path}", split="test")
    monkeypatch.setattr(kind, "train_list", [])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
    rows = open_source(f"torchvision:CIFAR10:{tmp_path}", split="test")
    np.testing.assert_array_equal(pixels(rows), images.transpose(0, 2, 3, 1))
    assert rows.labels("label") == [names[label] for label in labels]


def test_images_that_are_files_stay_where_they_are(tmp_path):
    for name in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{name}_{number}.jpg")
    rows = open_source(f"torchvision:EuroSAT:{tmp_path}")
    assert rows.labels("label") == ["Forest", "Forest", "River", "River"]
    assert rows.images("image", [0]) == [tmp_path / "eurosat" / "2750" / "Forest" / "Forest_0.jpg"]
    assert rows.ids()[3] == "eurosat/2750/River/River_1.jpg"


def test_what_was_fetched_before_is_not_downloaded_again(fashion):
    assert fetch(f"FashionMNIST:{fashion[0]}") == fashion[0]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("FashionMINST", "train", "no such data set; did you mean 'FashionMNIST'"),
        ("FashionMNIST", None, "has parts; name one, such as train or test"),
        ("FashionMNIST", "dev", "no such part; it has train and test"),
        ("EuroSAT", "train", "has no parts; leave the split out"),
        ("CIFAR10", "train", "mmcl data get torchvision:CIFAR10"),
    ],
)
def test_mistakes_are_named(fashion, name, split, message):
    with pytest.raises(MmclError, match=message):
        open_source(f"torchvision:{name}:{fashion[0]}", split=split)

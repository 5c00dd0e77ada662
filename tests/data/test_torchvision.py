"""torchvision's data sets through one function."""

import gzip
import inspect
import pickle
import urllib.request

import numpy as np
import pytest
import torch
from helpers.data import FAST, write_idx
from helpers.refusals import refused
from PIL import Image
from torchvision import datasets

from vae_lab.data import sets
from vae_lab.data.sets.torchvision_datasets import DATASETS
from vae_lab.utils.errors import UsageError

FAKE = {"size": 40, "image_size": [3, 12, 16], "num_classes": 4}


def load(dataset, root="nowhere", **options):
    return sets.torchvision(dataset, str(root), **options).load()


def test_every_name_is_a_class_of_torchvision_with_these_arguments():
    for name, parts in DATASETS.items():
        known = inspect.signature(getattr(datasets, name)).parameters
        if "kwargs" not in known:
            assert all(arguments.keys() <= known.keys() for arguments in parts.values()), name


def test_pictures_labels_and_random_splits_of_a_set_without_splits():
    images = load("FakeData", options=FAKE)
    original = datasets.FakeData(40, (3, 12, 16), 4)
    assert images.pixels.shape == (40, 3, 12, 16)
    assert np.array_equal(images.pixels[7].permute(1, 2, 0).numpy(), np.asarray(original[7][0]))
    assert images.labels.tolist() == [original[i][1] for i in range(40)] and images.class_names == tuple("0123")
    assert [len(images.splits[split]) for split in ("train", "val", "test")] == [32, 4, 4]
    assert load("FakeData", options=FAKE, image_size=(4, 8), channels=1).pixels.shape == (40, 1, 4, 8)


def test_official_splits_and_names_of_the_classes(tmp_path):
    folder, rng = tmp_path / "KMNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    arrays = {
        part: rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) for part, count in (("train", 30), ("t10k", 9))
    }
    for part, pixels in arrays.items():
        for name, values in (
            (f"{part}-images-idx3-ubyte", pixels),
            (f"{part}-labels-idx1-ubyte", pixels[:, 0, 0] % 10),
        ):
            write_idx(folder / f"{name}.gz", values)
            (folder / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
    images = load("KMNIST", tmp_path, val_size=5)
    assert np.array_equal(images.pixels[:, 0].numpy(), np.concatenate([*arrays.values()]))
    assert [len(images.splits[split]) for split in ("train", "val", "test")] == [25, 5, 9]
    assert images.splits["test"].tolist() == [*range(30, 39)] and images.class_names[:2] == ("o", "ki")


def test_a_set_of_several_sizes_needs_one(tmp_path):
    for name, side in (("a", 6), ("b", 7)):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (side, 6), (i, 0, 0)).save(folder / f"{i}.jpg")
    with pytest.raises(UsageError, match=r"such as 6x6 and 7x6\nSet data\.image_size="):
        load("EuroSAT", tmp_path)
    images = load("EuroSAT", tmp_path, image_size=8)
    assert images.pixels.shape == (12, 3, 8, 8) and images.class_names == ("a", "b")


def test_wrong_names_and_arguments_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"data\.dataset=CIFAR: .*\ndid you mean data\.dataset=CIFAR10\?"):
        load("CIFAR")
    with pytest.raises(UsageError, match=r"(?s)EMNIST says: .*'split'.*data\.options\.NAME=VALUE"):
        load("EMNIST")
    with pytest.raises(UsageError, match=r"(?s)data\.options: .*FakeData says: .*sizes"):
        load("FakeData", options={"sizes": 3})


@pytest.mark.parametrize("dataset", ["CIFAR10", "SVHN", "USPS", "KMNIST", "QMNIST"])
def test_no_network_is_three_lines_and_names_the_digits(tmp_path, monkeypatch, dataset):
    def offline(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(urllib.request, "urlretrieve", offline)
    with pytest.raises(UsageError) as raised:
        load(dataset, tmp_path)
    first, second, third = str(raised.value).split("\n")
    assert f"{dataset} could not be downloaded" in first and str(tmp_path) in second and "data=digits" in third


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path, monkeypatch):
    test_no_network_is_three_lines_and_names_the_digits(tmp_path, monkeypatch, "CIFAR10")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, _ in [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, ["batches.meta", ""]]:
        (folder / name).write_bytes(pickle.dumps({"data": [], "labels": []}))
    monkeypatch.setattr(pickle, "load", None)
    with pytest.raises(UsageError, match="could not be downloaded"):
        load("CIFAR10", tmp_path)


def test_from_the_command_line(command):
    options = ("data=torchvision", *FAST, "callbacks.images=null", "+data.options.image_size=[3,8,8]")
    done = command(*options, "data.dataset=FakeData", "+data.options.size=60", "model.conditional=true")
    assert done.code == 0, done.stderr
    refused(command("data=torchvision", "data.dataset=SHVN"), "data.dataset=SHVN", "data.dataset=SVHN")
    assert torch.is_tensor(load("FakeData", options=FAKE).pixels)

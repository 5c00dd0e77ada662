"""MNIST's four files: read strictly, downloaded whole or not at all."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch
from helpers.data import FAST
from torchvision import datasets

from vae_lab.data import sets
from vae_lab.data.sets.idx import FILES
from vae_lab.utils.errors import UsageError

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = FILES
NOBODY = "http://127.0.0.1:9/"  # discard: refused


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + bytes(values.flatten())


def contents(num_train=12, num_test=4):
    """The four files by name: random images, labels 0..9 in turn."""
    generator, files = torch.Generator().manual_seed(0), {}
    for part, count in (("train", num_train), ("t10k", num_test)):
        pixels = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(pixels)
        files[f"{part}-labels-idx1-ubyte"] = idx(torch.arange(count, dtype=torch.uint8) % 10)
    return files


def write(root, files, dataset="MNIST"):
    folder = root / dataset / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def load(root, data_set=sets.mnist):
    return data_set(str(root), val_size=3, test_size=4).load()


def test_training_images_come_first_then_the_test(tmp_path):
    files = contents()
    write(tmp_path, files)
    images = load(tmp_path)
    assert images.pixels.shape == (16, 1, 28, 28) and images.pixels.dtype == torch.uint8
    assert bytes(images.pixels[:12].flatten()) == files[IMAGES][16:]
    assert bytes(images.pixels[12:].flatten()) == files[TEST_IMAGES][16:]
    assert images.labels.tolist() == [*range(10), 0, 1, 0, 1, 2, 3] and images.labels.dtype == torch.int64
    assert [len(images.splits[split]) for split in ("train", "val", "test")] == [9, 3, 4]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_gzipped_files_are_the_same_even_without_their_suffix(tmp_path, suffix):
    write(tmp_path / "raw", contents())
    write(tmp_path / "gz", {f"{name}{suffix}": gzip.compress(content) for name, content in contents().items()})
    assert torch.equal(load(tmp_path / "gz").pixels, load(tmp_path / "raw").pixels)


def test_fashion_mnist_has_its_own_folder_and_classes(tmp_path):
    write(tmp_path, contents(), "FashionMNIST")
    images = load(tmp_path, sets.fashion_mnist)
    assert images.class_names[9] == "Ankle boot" and len(images.class_names) == 10


DOTTED = {name: name.replace("-idx", ".idx") for name in FILES}
LAYOUTS = {
    "dots": [f"{name}" for name in DOTTED.values()],
    "deep": [f"a/b/{name}.gz" for name in FILES],
    "own folders": [f"archive/{name}/{name}" for name in FILES],
    "own folders with dots": [f"archive/{name}/{name}" for name in DOTTED.values()],
}


def lay(root, names, files):
    for name, content in zip(names, files.values(), strict=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_are_found_wherever_they_lie(tmp_path, layout):
    other = contents()
    other[IMAGES] = idx(torch.zeros(12, 28, 28, dtype=torch.uint8))
    lay(tmp_path / "data", [f"FashionMNIST/{name}" for name in FILES], other)
    lay(tmp_path / "data", [f"a/EMNIST/raw/{name}" for name in FILES], other)
    lay(tmp_path / "data", LAYOUTS[layout], contents())
    assert bytes(load(tmp_path / "data").pixels[:12].flatten()) == contents()[IMAGES][16:]
    assert load(tmp_path / "data", sets.fashion_mnist).pixels[:12].max() == 0


def test_the_file_of_keras(tmp_path):
    write(tmp_path / "raw", contents())
    images = load(tmp_path / "raw")
    arrays = {"x_train": images.pixels[:12, 0], "y_train": images.labels[:12], "x_test": images.pixels[12:, 0],
              "y_test": images.labels[12:]}  # fmt: skip
    (tmp_path / "keras" / "datasets").mkdir(parents=True)
    path = tmp_path / "keras" / "datasets" / "mnist.npz"
    np.savez(path, **{key: value.numpy() for key, value in arrays.items()})
    found = load(tmp_path / "keras")
    assert torch.equal(found.pixels, images.pixels) and torch.equal(found.labels, images.labels)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match=r"mnist\.npz: cannot be read"):
        load(tmp_path / "keras")


def test_files_elsewhere_train_from_the_command_line(command):
    lay(command.cwd / "d", LAYOUTS["own folders with dots"], contents(80, 20))
    sizes = ("data.val_size=10", "data.test_size=20")
    done = command("data=mnist", "data.root=d", *sizes, *FAST, "callbacks.images=null")
    assert done.code == 0, done.stderr


WHOLE = contents()[IMAGES]
PACKED = gzip.compress(WHOLE)
BROKEN = {
    "cut short": WHOLE[:-1],
    "too long": WHOLE + b"x",
    "header cut short": WHOLE[:9],
    "wrong magic": b"\0\0\x08\x01" + WHOLE[4:],
    "not IDX": b"<html>" + WHOLE,
    "empty": b"",
    "gzip cut short": PACKED[:-20],
    "gzip of more": gzip.compress(WHOLE + b"x"),
    "gzip, then more": PACKED + b"more",
    "gzip of another checksum": PACKED[:-8] + bytes(8),
    "gzip corrupt": PACKED[:200] + bytes(50) + PACKED[250:],
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_what_to_do(tmp_path, case):
    write(tmp_path, contents() | {IMAGES: BROKEN[case]})
    with pytest.raises(UsageError, match=rf"{IMAGES}: cannot be read \(.+\)") as raised:
        load(tmp_path)
    assert "Remove the file" in str(raised.value) and str(raised.value).count("\n") == 2


@pytest.mark.parametrize(
    ("labels", "found"), [([0] * 11, "12 and 4 images with 11 and 4 labels"), ([10] * 12, "labels up to 10")]
)
def test_labels_must_be_as_many_as_images_and_digits(tmp_path, labels, found):
    write(tmp_path, contents() | {LABELS: idx(torch.tensor(labels, dtype=torch.uint8))})
    with pytest.raises(UsageError, match=found):
        load(tmp_path)


@pytest.fixture
def mirror(server, monkeypatch):
    """A local mirror of generated files with their checksums, the second of two; `files` are what it sends."""
    server.files = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in contents().items()}
    server.answer = lambda name: (200, server.files[name], None)
    checksums = [(name, hashlib.md5(packed).hexdigest()) for name, packed in server.files.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", checksums)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOBODY, f"{server.url}/"])
    return server


def files_in(root):
    return sorted(path.name for path in (root / "MNIST" / "raw").iterdir())


def test_missing_files_are_downloaded_once_from_the_mirror_that_works_and_others_kept(tmp_path, mirror):
    mine = idx(torch.full((12,), 7, dtype=torch.uint8))
    folder = write(tmp_path / "data", {LABELS: mine})
    images = load(tmp_path / "data")
    assert files_in(tmp_path / "data") == sorted([LABELS, *(f"{name}.gz" for name in FILES if name != LABELS)])
    assert bytes(images.pixels[:12].flatten()) == contents()[IMAGES][16:] and len(images.pixels) == 16
    assert images.labels[:12].unique().tolist() == [7] and (folder / LABELS).read_bytes() == mine
    load(tmp_path / "data")
    assert len(mirror.asked) == 3


def test_a_download_with_a_wrong_checksum_never_gets_its_name(tmp_path, mirror):
    mirror.files[f"{TEST_LABELS}.gz"] = b"damaged on the way"
    with pytest.raises(UsageError, match=r"MNIST could not be downloaded: .* has the checksum \w+, expected"):
        load(tmp_path / "data")
    assert files_in(tmp_path / "data") == sorted(f"{name}.gz" for name in FILES[:3])


def test_no_network_is_three_lines_and_names_the_digits(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOBODY])
    with pytest.raises(UsageError) as raised:
        load(tmp_path / "data")
    first, second, third = str(raised.value).split("\n")
    assert "MNIST could not be downloaded" in first and "refused" in first
    assert IMAGES in second and str(tmp_path / "data") in second and NOBODY in second
    assert "data=digits" in third


def test_a_root_that_cannot_be_written_is_named(tmp_path, mirror):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=rf"(?s)Not a directory.*{tmp_path}/file/MNIST/raw"):
        load(tmp_path / "file")

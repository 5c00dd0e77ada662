"""MNIST's four files: read strictly, downloaded whole or not at all."""

import gzip
import hashlib
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torchvision import datasets

from vae_lab.data.sources.idx import read_idx
from vae_lab.data.sources.mnist import MNIST, FashionMNIST
from vae_lab.utils.errors import UsageError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
NAMES = (IMAGES, LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
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


def load(root, source=MNIST):
    return source(str(root), val_size=3, test_size=4).load()


def test_training_images_come_first_then_the_test(tmp_path):
    files = contents()
    write(tmp_path, files)
    images = load(tmp_path)
    assert images.pixels.shape == (16, 1, 28, 28) and images.pixels.dtype == torch.uint8
    assert bytes(images.pixels[:12].flatten()) == files[IMAGES][16:]
    assert bytes(images.pixels[12:].flatten()) == files[NAMES[2]][16:]
    assert images.labels.tolist() == [*range(10), 0, 1, 0, 1, 2, 3] and images.labels.dtype == torch.int64
    assert [len(images.splits[split]) for split in ("train", "val", "test")] == [9, 3, 4]


def test_gzipped_files_are_the_same(tmp_path):
    write(tmp_path / "raw", contents())
    write(tmp_path / "gz", {f"{name}.gz": gzip.compress(content) for name, content in contents().items()})
    assert torch.equal(load(tmp_path / "gz").pixels, load(tmp_path / "raw").pixels)


def test_a_gzipped_file_may_have_lost_its_suffix(tmp_path):
    write(tmp_path, {name: gzip.compress(content) for name, content in contents().items()})
    assert len(load(tmp_path).pixels) == 16


def test_fashion_mnist_has_its_own_folder_and_classes(tmp_path):
    write(tmp_path, contents(), "FashionMNIST")
    images = load(tmp_path, FashionMNIST)
    assert images.class_names[9] == "Ankle boot" and len(images.class_names) == 10


def broken_cases():
    whole = contents()[IMAGES]
    packed = gzip.compress(whole)
    return {
        "cut short": (whole[:-1], f"holds {len(whole) - 1} bytes.*\n.*{len(whole)}, as its header states"),
        "too long": (whole + b"x", f"holds {len(whole) + 1} bytes"),
        "header cut short": (whole[:9], r"cut short at 9 bytes.*\n.*a header of 16 bytes"),
        "wrong magic": (b"\0\0\x08\x01" + whole[4:], r"magic number is 00000801.*\n.*00000803"),
        "not IDX": (b"<html>" + whole, r"magic number is 3c68746d"),
        "empty": (b"", r"magic number is an empty file"),
        "gzip cut short": (packed[:-20], "gzip is corrupt"),
        "gzip of more": (gzip.compress(whole + b"x"), rf"holds {len(whole) + 1} bytes.*\n.*{len(whole)}, as"),
        "gzip of less": (gzip.compress(whole[:-1]), f"holds {len(whole) - 1} bytes.*\n.*{len(whole)}, as"),
        "gzip, then more": (packed + b"more", "gzip is corrupt"),
        "gzip of another checksum": (packed[:-8] + bytes(8), "gzip is corrupt"),
        "gzip corrupt": (packed[:200] + bytes(50) + packed[250:], "gzip is corrupt"),
    }


@pytest.mark.parametrize("case", broken_cases())
def test_a_broken_file_is_named_with_what_was_found_and_what_to_do(tmp_path, case):
    content, message = broken_cases()[case]
    write(tmp_path, contents() | {IMAGES: content})
    with pytest.raises(UsageError, match=rf"{IMAGES}: .*{message}") as raised:
        load(tmp_path)
    assert "Remove the file" in str(raised.value) and str(raised.value).count("\n") == 2


def test_no_dimension_may_be_made_up(tmp_path):
    (tmp_path / "file").write_bytes(idx(torch.zeros(0, dtype=torch.uint8)))
    assert read_idx(tmp_path / "file", num_dims=1).shape == (0,)


def test_labels_must_be_as_many_as_images(tmp_path):
    write(tmp_path, contents() | {LABELS: idx(torch.zeros(11, dtype=torch.uint8))})
    with pytest.raises(UsageError, match=rf"{LABELS}: 11 labels for the 12 images of {IMAGES}"):
        load(tmp_path)


def test_labels_must_be_digits(tmp_path):
    write(tmp_path, contents() | {LABELS: idx(torch.full((12,), 10, dtype=torch.uint8))})
    with pytest.raises(UsageError, match=rf"{LABELS}: found label 10.\nExpected 0 to 9"):
        load(tmp_path)


def test_train_and_test_must_have_one_size(tmp_path):
    write(tmp_path, contents() | {NAMES[2]: idx(torch.zeros(4, 14, 14, dtype=torch.uint8))})
    with pytest.raises(UsageError, match="28x28, the test images 14x14"):
        load(tmp_path)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A local mirror with the checksums of generated files; yields the folder it serves."""
    served, resources = tmp_path / "mirror", []
    served.mkdir()
    for name, content in contents().items():
        packed = gzip.compress(content, mtime=0)
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Mirror, directory=str(served)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOBODY, f"http://127.0.0.1:{server.server_port}/"])
    Mirror.asked = []
    yield served
    server.shutdown()
    server.server_close()


class Mirror(SimpleHTTPRequestHandler):
    def do_GET(self):
        Mirror.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        """Nothing on the test's output."""


def files_in(root):
    return sorted(path.name for path in (root / "MNIST" / "raw").iterdir())


def test_missing_files_are_downloaded_once_from_the_mirror_that_works(tmp_path, mirror):
    images = load(tmp_path / "data")
    assert files_in(tmp_path / "data") == sorted(f"{name}.gz" for name in NAMES)
    assert bytes(images.pixels[:12].flatten()) == contents()[IMAGES][16:] and len(images.pixels) == 16
    load(tmp_path / "data")
    assert len(Mirror.asked) == 4


def test_a_file_that_is_there_is_not_replaced(tmp_path, mirror):
    mine = idx(torch.full((12,), 7, dtype=torch.uint8))
    folder = write(tmp_path / "data", {LABELS: mine})
    assert load(tmp_path / "data").labels[:12].unique().tolist() == [7]
    assert (folder / LABELS).read_bytes() == mine and len(Mirror.asked) == 3


def test_a_download_with_a_wrong_checksum_never_gets_its_name(tmp_path, mirror):
    (mirror / f"{NAMES[3]}.gz").write_bytes(b"damaged on the way")
    with pytest.raises(UsageError, match=r"MNIST could not be downloaded: .* has the checksum \w+, expected"):
        load(tmp_path / "data")
    assert files_in(tmp_path / "data") == sorted(f"{name}.gz" for name in NAMES[:3])


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

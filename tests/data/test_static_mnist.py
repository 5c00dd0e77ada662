"""The three text files of MNIST binarised once and for all."""

import numpy as np
import pytest
from helpers.data import FAST
from helpers.refusals import refused

from vae_lab.data import sets
from vae_lab.utils.errors import UsageError


@pytest.fixture
def bits(tmp_path):
    """100, 20 and 30 images in files of a folder below."""
    bits = np.random.default_rng(0).integers(0, 2, (150, 784))
    (tmp_path / "data/sub").mkdir(parents=True)
    for part, rows in (("train", bits[:100]), ("valid", bits[100:120]), ("test", bits[120:])):
        np.savetxt(tmp_path / f"data/sub/binarized_mnist_{part}.amat", rows, "%d")
    return bits


def test_the_published_splits_of_zeros_and_ones(tmp_path, bits):
    images = sets.static_mnist(str(tmp_path / "data")).load()
    assert np.array_equal(images.pixels.flatten(1).numpy(), bits * 255) and images.pixels.shape[1:] == (1, 28, 28)
    assert [images.splits[split].tolist() for split in ("train", "val", "test")] == [
        [*range(100)], [*range(100, 120)], [*range(120, 150)]
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["", "0 1 0\n", "<html>" * 784, "0 2 " * 392])
def test_a_damaged_file_is_named(tmp_path, bits, content):
    (tmp_path / "data/sub/binarized_mnist_valid.amat").write_text(content)
    with pytest.raises(UsageError, match=r"binarized_mnist_valid\.amat: cannot be read as rows of 784 zeros and ones"):
        sets.static_mnist(str(tmp_path / "data")).load()


def test_from_the_command_line(command, bits):
    done = command("data=static_mnist", "data.root=data", *FAST, "callbacks.images=null")
    assert done.code == 0, done.stderr
    (command.cwd / "data/sub/binarized_mnist_test.amat").unlink()
    refused(command("data=static_mnist", "data.root=data"), "/data: binarized_mnist_test.amat", "http://www.cs.")

"""The bundled digits: the same numbers as scikit-learn's loader, without its two seconds."""

import sys

import numpy as np
import pytest
import torch

from vae_lab.data.sets import digits
from vae_lab.utils.errors import UsageError


@pytest.fixture(scope="module")
def images():
    return digits().load()


def test_the_originals_are_those_of_load_digits():
    from sklearn.datasets import load_digits

    reference = load_digits()
    images = digits(image_size=8).load()
    expected = np.round(reference.images * 255 / 16).astype(np.uint8)
    assert np.array_equal(images.pixels[:, 0].numpy(), expected)
    assert np.array_equal(images.labels.numpy(), reference.target)


def test_the_margin_is_empty_and_upsampling_keeps_what_distinguishes_the_digits(images):
    """A nearest-mean classifier on the thresholded pictures is right about 9 times in 10."""
    assert images.pixels.shape == (1797, 1, 28, 28) and images.pixels.dtype == torch.uint8
    assert images.labels.dtype == torch.int64 and images.class_names == tuple("0123456789")
    assert images.pixels.min() == 0 and images.pixels.max() == 255
    margin = images.pixels.clone()
    margin[:, :, 2:-2, 2:-2] = 0
    assert margin.max() == 0
    x, y = (images.pixels >= 128).flatten(1).float(), images.labels
    train, test = images.splits["train"], images.splits["test"]
    means = torch.stack([x[train][y[train] == digit].mean(0) for digit in range(10)])
    assert (torch.cdist(x[test], means).argmin(1) == y[test]).float().mean() > 0.85


def test_splits_are_disjoint_whole_of_every_class_and_the_same_every_time(images):
    splits, again = images.splits, digits().load().splits
    together = torch.cat([splits["train"], splits["val"], splits["test"]])
    assert torch.equal(together.sort().values, torch.arange(1797))
    assert len(splits["val"]) == len(splits["test"]) == 180
    assert all(len(images.labels[indices].unique()) == 10 for indices in splits.values())
    assert all(torch.equal(again[split], indices) for split, indices in splits.items())
    assert together[:5].tolist() == [1081, 1707, 927, 713, 262]


def test_scikit_learn_is_never_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert len(digits().load().pixels) == 1797


def test_sizes_out_of_range_are_named():
    with pytest.raises(UsageError, match=r"data\.image_size=7"):
        digits(image_size=7)
    with pytest.raises(UsageError, match=r"data\.val_size=1700 and data\.test_size=180"):
        digits(val_size=1700).load()

"""The bundled digits: the same numbers as scikit-learn's loader, without its two seconds."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from vae_lab.data.sources import digits as digits_module
from vae_lab.data.sources.digits import Digits
from vae_lab.utils.errors import UsageError


@pytest.fixture(scope="module")
def images():
    return Digits().load()


def test_the_originals_are_those_of_load_digits():
    from sklearn.datasets import load_digits

    reference = load_digits()
    images = Digits(image_size=8).load()
    expected = np.round(reference.images * 255 / 16).astype(np.uint8)
    assert np.array_equal(images.pixels[:, 0].numpy(), expected)
    assert np.array_equal(images.labels.numpy(), reference.target)


def test_shapes_types_and_the_whole_scale(images):
    assert images.pixels.shape == (1797, 1, 28, 28) and images.pixels.dtype == torch.uint8
    assert images.labels.dtype == torch.int64 and images.class_names == tuple("0123456789")
    assert images.pixels.min() == 0 and images.pixels.max() == 255


def test_the_margin_is_empty_and_the_strokes_are_crisp(images):
    margin = images.pixels.clone()
    margin[:, :, 2:-2, 2:-2] = 0
    assert margin.max() == 0
    ink = (images.pixels >= 128).float().mean((1, 2, 3))
    assert ink.min() > 0.05 and ink.max() < 0.5  # each digit thresholds to strokes, not to dust or a blot


def test_upsampling_keeps_what_distinguishes_the_digits(images):
    """A nearest-mean classifier on the thresholded pictures is right about 9 times in 10."""
    x, y = (images.pixels >= 128).flatten(1).float(), images.labels
    train, test = images.splits["train"], images.splits["test"]
    means = torch.stack([x[train][y[train] == digit].mean(0) for digit in range(10)])
    assert (torch.cdist(x[test], means).argmin(1) == y[test]).float().mean() > 0.85


def test_splits_are_disjoint_whole_and_of_every_class(images):
    splits = images.splits
    together = torch.cat([splits["train"], splits["val"], splits["test"]])
    assert torch.equal(together.sort().values, torch.arange(1797))
    assert len(splits["val"]) == len(splits["test"]) == 180
    assert all(len(images.labels[indices].unique()) == 10 for indices in splits.values())


def test_the_order_is_the_same_every_time(images):
    again = Digits().load().splits
    assert all(torch.equal(again[split], indices) for split, indices in images.splits.items())


def test_scikit_learn_is_never_imported():
    code = "import sys, vae_lab.data.sources.digits as d; d.Digits().load(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_file_names_the_cure(tmp_path, monkeypatch):
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(digits_module.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UsageError, match=rf"(?s){tmp_path}.*pip install --force-reinstall scikit-learn"):
        Digits().load()


def test_a_missing_scikit_learn_names_the_cure(monkeypatch):
    monkeypatch.setattr(digits_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        Digits().load()


def test_sizes_out_of_range_are_named():
    with pytest.raises(UsageError, match=r"data\.image_size=7"):
        Digits(image_size=7)
    with pytest.raises(UsageError, match=r"data\.val_size=1700 and data\.test_size=180"):
        Digits(val_size=1700).load()

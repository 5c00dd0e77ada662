"""Networks whose features images are compared in."""

from types import SimpleNamespace

import pytest
import torch
from helpers.linear import Images
from torch.testing import assert_close

from vae_lab.core import ImageSpec
from vae_lab.metrics import features
from vae_lab.metrics.subject import Subject
from vae_lab.utils.errors import UsageError


def subject(labelled=True):
    """Dark and bright images, and which is which."""
    labels = torch.arange(60) % 2
    x = 0.2 * torch.rand(60, 1, 8, 8) + 0.7 * labels.view(-1, 1, 1, 1)
    data = Images(x, labels if labelled else None)
    data.class_names = ("dark", "bright") if labelled else ()
    return Subject(SimpleNamespace(image=ImageSpec(1, 8, 8)), data, torch.device("cpu"))


@pytest.mark.parametrize("name", ["classifier", "flips", "random"])
def test_the_same_features_come_from_the_cache(name, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "STEPS", 3)
    x, images = torch.rand(5, 1, 8, 8), subject()
    first = features.build_features(name, images, tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    again = features.build_features(name, images, tmp_path)
    assert file.stat().st_mtime_ns == before and name in first.name
    assert_close(again.extract(x), first.extract(x), rtol=0, atol=0)
    assert first.of(iter([x, x])).shape == (10, first.extract(x).shape[1])


def test_auto_takes_the_labels_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "STEPS", 30)
    by_labels = features.build_features("auto", subject(), tmp_path)
    assert by_labels.name.startswith("classifier")
    assert features.build_features("auto", subject(labelled=False), tmp_path).name.startswith("flips")


def test_other_labels_of_the_same_images_are_other_features(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "STEPS", 3)
    images, others = subject(), subject()
    others.data.labels, others.data.class_names = torch.arange(60) % 3, ("a", "b", "c")
    for each in (images, others):
        assert features.build_features("auto", each, tmp_path).name.startswith("classifier")
    others.data.class_names = ("a",)
    assert features.build_features("auto", others, tmp_path).name.startswith("flips")
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="the data have no labels"):
        features.build_features("classifier", subject(labelled=False), tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UsageError, match=features.INCEPTION):
        features.build_features("inception", subject(), tmp_path)

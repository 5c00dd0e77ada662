"""The importance-weighted estimate of log p(x) against the exact one of a linear-Gaussian model."""

import math

import pytest
import torch
from helpers.linear import SIDE, linear_model
from helpers.steps import model_of
from omegaconf import OmegaConf
from torch.testing import assert_close

from vae_lab import load
from vae_lab.core import ImageSpec
from vae_lab.inference import Lab
from vae_lab.metrics.importance import MAX_VALUES, importance_bound


def test_with_the_exact_posterior_one_sample_is_enough():
    model, x, evidence = linear_model(1.0)
    assert_close(importance_bound(model, x, 1), evidence, rtol=1e-3, atol=1e-3)


def test_the_bound_rises_with_the_number_of_samples_to_the_evidence():
    model, x, evidence = linear_model(3.0)
    means = []
    for num_samples in (1, 8, 64):
        repeats = torch.stack([importance_bound(model, x, num_samples) for _ in range(200)])
        means.append(repeats.mean(0))
    assert (means[0] < means[1]).all() and (means[1] < means[2] + 5e-3).all()
    assert_close(importance_bound(model, x, 20_000), evidence, rtol=0, atol=3e-2)


def test_many_images_are_taken_a_few_at_a_time_and_their_samples_in_parts(monkeypatch):
    monkeypatch.setitem(MAX_VALUES, "cpu", 2 * SIDE * SIDE)
    model, x, evidence = linear_model(1.0)
    encoded = []
    model.encoder.register_forward_hook(lambda *args: encoded.append(len(args[2])))
    assert_close(importance_bound(model, x, 7), evidence, rtol=1e-3, atol=1e-3)
    assert encoded == [1, 2, 2, 1]  # one to see how large it gets


@pytest.mark.parametrize("num_samples", [0, 1.5])
def test_less_than_a_sample_is_refused(num_samples):
    model, x, _ = linear_model(1.0)
    with pytest.raises(ValueError, match=f"at least 1 sample; found {num_samples}"):
        importance_bound(model, x, num_samples)


def test_a_loaded_run_tells_the_likelihood_of_images(fast_run):
    lab = load(fast_run.run)
    images = (torch.rand(4, 1, 28, 28) > 0.5).float()
    torch.manual_seed(0)
    few, many = lab.log_likelihood(images, 1), lab.log_likelihood(images, 200)
    assert few.shape == many.shape == (4,) and many.mean() > few.mean()
    assert many.max() < 0 and math.isfinite(float(many.min()))


@pytest.mark.parametrize(
    ("images", "found"),
    [([[0.5]], "found a list"), (torch.zeros(0, 1, 28, 28), r"found torch.float32 \(0, 1, 28, 28\)"),
     (torch.full((1, 1, 28, 28), 2.0), r"found values in \[2, 2\]"),
     (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), r"images.float\(\) / 255")],
)  # fmt: skip
def test_what_is_no_batch_of_images_is_refused_with_what_was_found(fast_run, images, found):
    with pytest.raises(ValueError, match=rf"(?s)expected a float32 torch.Tensor \(B, 1, 28, 28\) in \[0, 1\].*{found}"):
        load(fast_run.run).log_likelihood(images)


@pytest.mark.parametrize(
    ("labels", "found"),
    [(torch.tensor([3, 1]), r"one for each image; found torch.int64 \(2,\)"), (torch.ones(4), "found torch.float32"),
     (torch.tensor([0, 1, 2, 3]), "0 to 2; found 0 to 3"), (-1, "0 to 2; found -1 to -1")],
)  # fmt: skip
def test_what_are_no_labels_is_refused_with_what_was_found(labels, found):
    spec = ImageSpec(1, 28, 28, num_classes=3)
    lab = Lab(model_of("model=mlp", "model.conditional=true", image=spec), OmegaConf.create(), 0)
    with pytest.raises(ValueError, match=rf"labels: expected .*{found}"):
        lab.sample(4, labels=labels)
    if isinstance(labels, torch.Tensor):
        with pytest.raises(ValueError, match=found):
            lab.encode(torch.zeros(4, 1, 28, 28), labels)
    assert lab.sample(4, labels=2).shape == (4, 1, 28, 28)

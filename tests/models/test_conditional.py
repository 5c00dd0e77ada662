"""Models that see labels: encoder, prior and decoder, in Python and through the command."""

import dataclasses

import pytest
import torch
from helpers.data import FAST
from helpers.refusals import refused
from helpers.steps import IMAGE, SMALL_MLP, images_of, model_of, step_of
from torch.testing import assert_close

from vae_lab import load
from vae_lab.metrics.diagnostics import Diagnostics

CLASSES = dataclasses.replace(IMAGE, levels=2, num_classes=3)
SMALL_CONV = ("model=conv", "model.latent_dim=3", "model.encoder.channels=[8]", "model.decoder.channels=[8]")
LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture(scope="module", params=[SMALL_MLP, SMALL_CONV], ids=["mlp", "conv"])
def model(request):
    return model_of(*request.param, "model.conditional=true", image=CLASSES)


def test_labels_change_what_is_encoded_and_decoded(model):
    x, z = torch.rand(4, 1, 8, 8), torch.randn(4, 3)
    others = (LABELS + 1) % 3
    assert not torch.allclose(model.encode(x, LABELS).mean, model.encode(x, others).mean)
    assert not torch.allclose(model.decode(z, LABELS).mean, model.decode(z, others).mean)


def test_each_image_has_its_own_label_in_a_batch_of_samples(model):
    """(S, B) latents are decoded as one at a time."""
    z = torch.randn(2, 4, 3)
    together = model.decode(z, LABELS).mean
    for s in range(2):
        for b in range(4):
            assert_close(together[s, b], model.decode(z[s, b : b + 1], LABELS[b : b + 1]).mean[0], rtol=1e-4, atol=1e-5)


def test_the_gain_of_labels_is_the_mean_over_images_whatever_the_batches(model):
    x, diagnostics, gains = torch.rand(4, 1, 8, 8).round(), Diagnostics(model), []
    for rows in (slice(0, 3), slice(3, 4)):
        trace = model(x[rows], 2, LABELS[rows])
        log_px = trace.likelihood.log_prob(x[rows])
        diagnostics.update(model, trace, log_px, x[rows], LABELS[rows])
        other = model.decode(trace.latents[0].z, (LABELS[rows] + 1) % 3).log_prob(x[rows])
        gains.append((log_px - other).mean(0))
    assert diagnostics.compute() == {"label_gain": pytest.approx(torch.cat(gains).mean().item(), rel=1e-4, abs=1e-5)}


def test_without_labels_it_says_what_is_missing(model):
    x, z = torch.rand(4, 1, 8, 8), torch.randn(4, 3)
    for call in (lambda: model(x), lambda: model.sample(4), lambda: model.decode(z)):
        with pytest.raises(ValueError, match="conditional: give it the labels"):
            call()


def test_the_step_gives_every_parameter_a_gradient_and_follows_the_labels(model):
    losses = []
    for labels in (LABELS, (LABELS + 1) % 3):
        step = step_of(model)
        record = step(images_of(4), 0, labels=labels)
        losses.append(float(record.terms[0]))
        assert all(gradient is not None for gradient in step.optimizer.gradients[0])
    assert losses[0] != losses[1]


def test_batches_in_one_step_take_their_own_labels():
    """Of the same noise: the loss of a step of two batches is that of the two, whatever is beside an image."""
    model = model_of(*SMALL_MLP, "model.conditional=true", image=CLASSES)
    seen = []
    model.label_features.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    step_of(model, batch_size=2)(images_of(4), 0, labels=LABELS)
    assert_close(torch.cat(seen), LABELS)


def test_a_conditional_run_trains_loads_and_samples_each_class(command):
    done = command(*FAST, "model.conditional=true", "callbacks.images=null")
    assert done.code == 0, done.stderr
    lab = load(done.run)
    torch.manual_seed(0)
    images = lab.sample(10, labels=torch.arange(10))
    assert images.shape == (10, 1, 28, 28)
    assert lab.sample(3, labels=7).shape == (3, 1, 28, 28)
    assert lab.reconstruct(images, labels=torch.arange(10)).shape == images.shape
    assert lab.log_likelihood(images.round(), 3, labels=torch.arange(10)).shape == (10,)
    with pytest.raises(ValueError, match="give it the labels"):
        lab.sample(3)


def test_pictures_without_labels_are_refused(command, pictures):
    done = command(*FAST, "data=folder", f"data.folder={pictures}", "data.image_size=16", "model.conditional=true")
    refused(done, "model.conditional=true", "no labels")

"""The trained model in Python: what its docstring shows, how it prints, and what it refuses."""

import doctest
import io

import pytest
import torch
from helpers.steps import model_of
from omegaconf import OmegaConf
from PIL import Image

from vae_lab import load
from vae_lab.core import ImageSpec
from vae_lab.inference import ImageBatch, Lab

SPEC = ImageSpec(1, 16, 16, num_classes=3)


def lab_of(*overrides, image=SPEC):
    return Lab(model_of(*overrides, image=image), OmegaConf.create(), 7)


def test_the_examples_of_the_docstring(fast_run):
    torch.manual_seed(0)
    names = {"lab": load(fast_run.run), "images": torch.rand(4, 1, 28, 28).round(), "torch": torch}
    (example,) = [it for it in doctest.DocTestFinder(recurse=False).find(Lab, "Lab", globs=names) if it.examples]
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(0, 6)


def test_it_prints_what_it_is():
    text = repr(lab_of("model=mlp", "model/prior=vamp"))
    assert (
        "VAE of 1x16x16" in text and "latent (8,); DiagonalGaussian, Bernoulli, VampPrior" in text and "step 7" in text
    )
    table = lab_of("model=mlp", "model/prior=vamp")._repr_html_()
    assert table.startswith("<table>") and "<tr><th>parts</th><td>DiagonalGaussian, Bernoulli, VampPrior</td>" in table
    assert "2 layers of latents" in repr(lab_of("model=ladder", "model.layers=1", "model.strides=[2,2]"))


@pytest.mark.parametrize(("shape", "size"), [((3, 1, 8, 8), 3 * 130), ((2, 5, 3, 8, 8), None), ((8, 8), 0)])
def test_a_notebook_displays_images_as_a_grid(shape, size):
    png = torch.rand(shape).as_subclass(ImageBatch)._repr_png_()
    if size == 0:
        assert png is None
    else:
        width, height = Image.open(io.BytesIO(png)).size
        assert width > height > 48 and size in (None, width)


def test_paths_end_at_the_reconstructions_and_traversals_vary_one_dimension():
    lab, x = lab_of("model=mlp", "model.latent_dim=3"), torch.rand(4, 1, 16, 16)
    for kind in ("linear", "spherical"):
        path = lab.interpolate(x[:2], x[2:], 4, kind)
        torch.testing.assert_close(path[:, [0, -1]], torch.stack([lab.reconstruct(x[:2]), lab.reconstruct(x[2:])], 1))
    rows = lab.traverse(x, dims=[2], steps=3, reach=2.0)
    z = lab.encode(x[:1]).mean.repeat(3, 1)
    z[:, 2] = torch.tensor([-2.0, 0.0, 2.0])
    torch.testing.assert_close(rows[0], lab.decode(z))
    assert lab.traverse(x).shape == (3, 11, 1, 16, 16)


def test_a_conditional_model_keeps_the_labels():
    lab, x, y = lab_of("model=mlp", "model.conditional=true"), torch.rand(2, 1, 16, 16), torch.tensor([0, 2])
    ends = lab.interpolate(x, x.flip(0), 3, labels=y)[:, 0]
    torch.testing.assert_close(ends, lab.reconstruct(x, y))
    assert lab.traverse(x, [0], labels=y).shape == (1, 11, 1, 16, 16)


@pytest.mark.parametrize(
    ("overrides", "call", "words"),
    [
        (("model=mlp",), lambda lab, x: lab.traverse(x, [20]), "found dimension 20, expected 0 to 7"),
        (("model=mlp",), lambda lab, x: lab.interpolate(x, x[:, :, :8]), "expected a float32"),
        (("model=ladder",), lambda lab, x: lab.traverse(x), "one vector of latents"),
        (("model=ladder",), lambda lab, x: lab.interpolate(x, x), "stochastic layers"),
        (
            ("model=spatial", "model/posterior=nearest_code", "model/prior=uniform_codes"),
            lambda lab, x: lab.interpolate(x, x),
            "between two codes",
        ),
    ],
)
def test_what_a_model_does_not_have_is_refused(overrides, call, words):
    with pytest.raises(ValueError, match=words):
        call(lab_of(*overrides), torch.rand(2, 1, 16, 16))

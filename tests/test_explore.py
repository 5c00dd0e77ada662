"""vae_lab.explore: what the page shows is what the lab computes; what is wrong is said."""

import importlib.util
import io
import os
import signal
import socket
import urllib.request
from dataclasses import replace

import pytest
import torch
from helpers.commands import wait_for
from helpers.refusals import refused
from helpers.steps import model_of
from omegaconf import OmegaConf
from PIL import Image
from torch.testing import assert_close

from vae_lab.core import ImageSpec
from vae_lab.explore.__main__ import examples_of
from vae_lab.explore.explorer import Explorer
from vae_lab.explore.latent_map import LatentMap
from vae_lab.figures.context import ExampleImages
from vae_lab.figures.grids import REACH
from vae_lab.inference import Lab
from vae_lab.utils.errors import UsageError

EXPLORE = {"module": "vae_lab.explore"}
GRADIO = importlib.util.find_spec("gradio") is not None  # too large for the tests' own requirements
SPEC = ImageSpec(1, 16, 16, num_classes=3)
LABELS = torch.arange(12) % 3
MAPS = ("model=spatial", "model/posterior=diagonal_gaussian", "model/prior=standard_normal", "model.latent_dim=2")
SPHERE = ("model=mlp", "model/posterior=von_mises_fisher", "model/prior=uniform_sphere", "model.latent_dim=4")
CODES = ("model=spatial", "model/posterior=nearest_code", "model/prior=uniform_codes")
pytestmark = pytest.mark.usefixtures("one_thread")


def explorer_of(*overrides, image=SPEC, binarize="none"):
    model = model_of(*overrides, image=image)
    x = torch.rand(12, *image.shape, generator=torch.Generator().manual_seed(1))
    lab = Lab(model, OmegaConf.create({"data": {"binarize": binarize}}), 0)
    return Explorer(lab, ExampleImages(x, LABELS, ("a", "b", "c")))


@pytest.mark.parametrize(
    "overrides",
    [("model=mlp",), ("model=mlp", "model.conditional=true"), ("model=mlp", "model/prior=flow"), MAPS, SPHERE],
)
def test_places_and_pictures_are_the_labs(overrides):
    explorer = explorer_of(*overrides)
    lab, x, y = explorer.lab, explorer.examples.x, LABELS if explorer.lab.model.conditional else None
    label, given = 1, None if y is None else y[[1]]  # image 1 is of class 1
    z = explorer.encode(x[1], label)
    assert_close(z, explorer.centres[1])
    assert_close(explorer.decode(z, label)[None], lab.reconstruct(x[[1]], given).as_subclass(torch.Tensor))
    assert_close(explorer.reconstruct(x[1], label), explorer.decode(z, label))
    path = explorer.decode(explorer.path([1, 4], 7, "spherical"), label)
    assert_close(path, lab.interpolate(x[[1]], x[[4]], 7, labels=given)[0].as_subclass(torch.Tensor))
    if overrides != SPHERE:
        images, places = explorer.samples(5, temperature=0.7, seed=3, label=label)
        torch.manual_seed(3)
        assert_close(images, lab.sample(5, 0.7, None if y is None else label).as_subclass(torch.Tensor))
        assert_close(explorer.decode(places, label), images)
    assert_close(explorer.attribute(2, 0), explorer.centres[2::3].mean(0) - explorer.centres[::3].mean(0))


def test_a_slider_moves_one_of_the_most_active_dimensions():
    explorer = explorer_of("model=mlp", "model.latent_dim=12")
    axes, space, z = explorer.axes, explorer.context.space, explorer.centres[0]
    dims = space.dims_by_activity[:10]
    assert_close(axes.coordinates(z), z[dims])
    moved = axes.move(z, 3, 1.5)
    expected = z.clone()
    expected[dims[3]] = 1.5
    assert_close(moved, expected)
    assert (axes.lowest <= -REACH).all() and (axes.highest >= explorer.centres[:, dims].amax(0)).all()


def test_the_sliders_of_a_map_of_latents_are_orthonormal_directions():
    axes = explorer_of(*MAPS).axes
    z = torch.randn(len(axes.origin))
    assert_close(axes.directions @ axes.directions.T, torch.eye(10), atol=1e-5, rtol=0)
    before, after = axes.coordinates(z), axes.coordinates(axes.move(z, 2, -1.0))
    assert_close(after, torch.where(torch.arange(10) == 2, torch.tensor(-1.0), before), atol=1e-5, rtol=0)


def test_a_single_image_has_sliders_too():
    explorer = explorer_of(*MAPS)
    examples = replace(explorer.examples, x=explorer.examples.x[:1], labels=LABELS[:1])
    axes = Explorer(explorer.lab, examples).axes
    assert (axes.lowest < axes.highest).all()


def test_on_a_sphere_the_point_in_the_direction_is_decoded():
    explorer = explorer_of(*SPHERE)
    z = explorer.centres[0]
    assert_close(explorer.decode(3 * z), explorer.decode(z))


@pytest.mark.parametrize("latents", [1, 2, 6])
def test_a_position_on_the_map_is_its_place(latents):
    explorer = explorer_of("model=mlp", f"model.latent_dim={latents}")
    plane = LatentMap(explorer)
    place = plane.place(0.4, 0.5)
    x, y = plane.position(place)
    assert abs(x - 0.4) < 1e-4 and (latents == 1 or abs(y - 0.5) < 1e-4)
    assert_close(plane.place(x, y), place, atol=1e-4, rtol=0)
    if latents == 2:
        assert_close(plane.place(*plane.position(explorer.centres[0])), explorer.centres[0], atol=1e-4, rtol=0)
    if latents > 1:  # there is a coloured point of the scatter
        picture = Image.open(io.BytesIO(plane.png)).convert("RGB")
        x, y = plane.position(explorer.centres[0])
        colour = picture.getpixel((int(x * picture.width), int(y * picture.height)))
        assert max(colour) - min(colour) > 40


def test_a_picture_becomes_what_the_model_is_given():
    explorer = explorer_of("model=mlp", binarize="threshold")
    explorer.examples.x[..., [0, -1]], explorer.examples.x[..., [0, -1], :] = 0, 0
    assert explorer.background == "#000000"
    stroke = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    stroke.paste((255, 255, 255, 255), (0, 0, 32, 32))
    stroke.save(file := io.BytesIO(), "PNG")
    image = explorer.read(file.getvalue())
    expected = torch.zeros(1, 16, 16)
    expected[:, 4:12, :8] = 1  # a wide picture is padded above and below
    assert torch.equal(image, expected)
    assert torch.equal(explorer.read(file.getvalue(), invert=True), 1 - expected)


def test_layers_of_a_ladder_are_resampled_and_others_kept():
    explorer = explorer_of("model=ladder", "model.layers=1", "model.strides=[2,2]")
    model, x = explorer.lab.model, explorer.examples.x[0]
    assert explorer.num_layers == 2 and not explorer.has_places
    assert_close(explorer.resample(x, (), 3), model.reconstruct(x.expand(3, -1, -1, -1)).mean)
    torch.manual_seed(5)
    sampled = model.sample(4, temperature=0.5).mean
    assert_close(explorer.resample(x, (0, 1), 4, 0.5, seed=5), sampled)
    assert_close(explorer.samples(4, 0.5, seed=5).images, sampled)
    with pytest.raises(ValueError, match="found 2, expected 0 to 1"):
        explorer.resample(x, (2,), 1)


def test_codes_have_reconstructions_and_samples_alone():
    explorer = explorer_of(*CODES)
    assert not explorer.has_places and explorer.num_layers == 0
    assert explorer.samples(2).places is None and explorer.reconstruct(explorer.examples.x[0]).shape == SPEC.shape


def test_prior_samples_stand_in_for_images_that_are_gone(tmp_path):
    lab = explorer_of("model=mlp", "model.conditional=true").lab
    node = {
        "_target_": "vae_lab.data.sets.folder",
        "folder": str(tmp_path / "gone"),
        "image_size": 16,
        "binarize": "none",
    }
    lab.config.data = OmegaConf.create(node)
    config = OmegaConf.create({"images": 6, "data": {"folder": None}})
    examples, note = examples_of(lab, config)
    assert "gone" in note and len(examples) == 6 and examples.labels.tolist() == [0, 1, 2, 0, 1, 2]
    config.data.folder = str(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="elsewhere"):
        examples_of(lab, config)


def test_wrong_requests(fast_run, command, tmp_path):
    run = str(fast_run.run)
    refused(command(str(tmp_path), **EXPLORE), "Not a run directory")
    refused(command(run, "checkpoint=worst", **EXPLORE), "worst.ckpt")
    refused(command(run, "prior=fitted", **EXPLORE), "no prior was fitted")
    refused(command(run, "images=1", **EXPLORE), "images=1", "at least 2")
    if not GRADIO:
        refused(command(run, **EXPLORE), "gradio is not installed", "pip install 'vae_lab[explore]'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(command(run, f"port={taken.getsockname()[1]}", **EXPLORE), "in use", "leave port out")


@pytest.mark.skipif(not GRADIO, reason="needs vae_lab[explore]")
def test_the_page_is_served_until_ctrl_c(fast_run, command):
    started = command.start(str(fast_run.run), "open=false", **EXPLORE)
    wait_for(lambda: "http://127.0.0.1:" in started.output())
    address = next(word for word in started.output().split() if word.startswith("http://127.0.0.1:"))
    assert "vae_lab" in urllib.request.urlopen(address, timeout=20).read().decode()
    os.kill(started.pid, signal.SIGINT)
    done = started.wait()
    assert done.code == 130 and "Traceback" not in done.stderr

"""The picture callbacks under a real Trainer: what is in the event files and the images folder afterwards."""

import io
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.drawing import SMALL, Data, Model, events, names, train
from PIL import Image

from vae_lab.callbacks.images import ImageLogger
from vae_lab.callbacks.tensorboard import TensorBoardSummary, hyperparameters
from vae_lab.data.transforms import Preprocess
from vae_lab.posteriors.codes import NearestCode
from vae_lab.priors.codes import UniformCodes
from vae_lab.utils.errors import UsageError

EXTRAS = ("network.png", "samples.gif")
GRIDS = ("reconstructions", "samples")  # bare, of a model with more than two latents
OF_VECTORS = (
    *("aggregate_posterior", "interpolations", "kl_per_dimension", "latent_grid", "latent_scatter"),
    *("reconstructions", "samples", "traversals"),
)


def decoded(event):
    return Image.open(io.BytesIO(event.encoded_image_string))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs and a test with everything on."""
    run = tmp_path_factory.mktemp("run")
    images = ImageLogger(**SMALL)
    experiment = train(run, images, TensorBoardSummary(), test=True)
    return SimpleNamespace(run=run, images=images, experiment=experiment, events=events(run))


def test_every_figure_is_a_png_and_a_summary_of_the_end(finished):
    assert names(finished.run, grids=False) == sorted([*(f"{what}.png" for what in OF_VECTORS), *EXTRAS])
    for what in (*OF_VECTORS, "network"):
        (event,) = finished.events.Images(f"pictures/{what}")
        assert event.step == 8
        assert event.encoded_image_string == (finished.run / "images" / f"{what}.png").read_bytes()
        pixels = np.asarray(decoded(event).convert("L"))
        assert pixels[len(pixels) // 4 : -len(pixels) // 4].std() > 5, f"{what} is blank"


def test_every_grid_is_a_png_and_a_summary_of_every_epoch(finished):
    assert names(finished.run, grids=True) == [f"{what}_epoch=000{epoch}.png" for what in GRIDS for epoch in (1, 2)]
    for what in GRIDS:
        shown = finished.events.Images(f"images/{what}")
        assert [event.step for event in shown] == [4, 8]
        for event, epoch in zip(shown, (1, 2), strict=True):
            assert decoded(event).size == (event.width, event.height)
            file = finished.run / "images" / f"{what}_epoch=000{epoch}.png"
            assert event.encoded_image_string == file.read_bytes()


def test_the_animation_has_a_frame_for_each_time(finished):
    (event,) = finished.events.Images("images/samples.gif")
    gif = decoded(event)
    assert gif.format == "GIF" and gif.n_frames == 2
    assert gif.size == Image.open(finished.run / "images" / "samples_epoch=0001.png").size
    assert gif.info["duration"] == 500


def test_histograms_and_graph_are_there(finished):
    tags = finished.events.Tags()
    assert set(tags["histograms"]) == {"latents/kl_per_dimension", "latents/aggregate_posterior"}
    assert len(finished.events.Histograms("latents/aggregate_posterior")) == 2
    assert tags["graph"] and "encoder" in str(finished.events.Graph())


def test_the_projector_has_points_classes_and_thumbnails(finished):
    folder = finished.run / "tensorboard" / "00008" / "posterior_means"
    assert len((folder / "tensors.tsv").read_text().splitlines()) == 16
    assert (folder / "metadata.tsv").read_text().split()[:3] == ["ant", "bee", "cat"]
    assert Image.open(folder / "sprite.png").size == (32, 32)  # four by four, 8 x 8 each
    assert "posterior_means" in (finished.run / "tensorboard" / "projector_config.pbtxt").read_text()


def test_config_and_hyperparameters_are_there(finished):
    (text,) = finished.events.Tensors("config/text_summary")
    assert "latent_dim: 3" in text.tensor_proto.string_val[0].decode()
    metadata = finished.events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"model.latent_dim" in metadata
    experiment = finished.events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert all(name in experiment for name in (b"val/elbo", b"test/elbo", b"best/val/elbo"))
    assert finished.events.Scalars("test/elbo")[-1].value == -4.0
    assert finished.events.Scalars("best/val/elbo")[-1].value == -3.0


def test_the_splits_of_a_term_share_a_chart(finished):
    layout = finished.events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert all(tag in layout for tag in (b"train/elbo", b"val/elbo", b"test/elbo"))


def test_pictures_take_time_and_leave_the_model_in_training_mode(finished):
    assert finished.experiment.stopwatch.seconds["pictures"] > 0
    assert all(module.training for module in finished.experiment.evaluation_model.modules())


def test_nothing_half_written_is_left(finished):
    assert not list(finished.run.rglob("*.partial"))


def test_training_is_the_same_with_and_without_pictures(tmp_path):
    seen = train(tmp_path / "with", samples())
    unseen = train(tmp_path / "without")
    assert seen.noise == unseen.noise
    for a, b in zip(seen.parameters(), unseen.parameters(), strict=True):
        assert torch.equal(a, b)


def samples(**options):
    return ImageLogger(pictures=["samples"], **SMALL, **options)


def test_the_samples_come_from_the_same_latents_every_time(tmp_path):
    class Frozen(Model):
        def sample_latents(self, *args):
            drawn.append(super().sample_latents(*args))
            return drawn[-1]

    drawn = []
    train(tmp_path, samples(), model=Frozen())
    assert all(z.equal(drawn[1]) for z in drawn if z.shape == drawn[1].shape)


@pytest.mark.parametrize(
    ("options", "trainer", "expected"),
    [
        ({"every_n_epochs": None, "every_n_steps": 3}, {}, ["epoch=0002", "step=00000003", "step=00000006"]),
        ({"every_n_epochs": 2}, {"epochs": 3}, ["epoch=0002", "epoch=0003"]),
        ({}, {"epochs": 5, "max_steps": 6}, ["epoch=0001", "step=00000006"]),
    ],
    ids=["steps", "the last epoch is drawn even when none is due", "an epoch cut short is named by its step"],
)
def test_grids_are_named_by_epoch_or_step_and_the_last_state_is_drawn(tmp_path, options, trainer, expected):
    train(tmp_path, samples(**options), **trainer)
    assert names(tmp_path, grids=True) == [f"samples_{when}.png" for when in expected]
    assert names(tmp_path, grids=False) == ["network.png", "samples.gif", "samples.png"]
    assert Image.open(tmp_path / "images" / "samples.gif").n_frames == len(expected)


def test_the_animation_takes_up_the_frames_of_an_earlier_session(tmp_path):
    for epochs in (1, 2):
        train(tmp_path, samples(every_n_epochs=epochs), epochs=epochs)
    assert Image.open(tmp_path / "images" / "samples.gif").n_frames == 2


@pytest.mark.parametrize(("latent_dim", "shape"), [(1, (1, 8, 8)), (2, (3, 8, 8))])
def test_with_at_most_two_latents_their_grid_is_drawn_too(tmp_path, latent_dim, shape):
    train(tmp_path, ImageLogger(**SMALL), model=Model(latent_dim, shape), data=Data(shape), epochs=1)
    assert {f"{what}.png" for what in OF_VECTORS} <= set(names(tmp_path))
    assert {"latent_grid_epoch=0001.png", "latent_grid.gif"} <= set(names(tmp_path))


def test_without_labels_validation_or_test_images(tmp_path):
    data = Data(class_names=(), splits=("train",))
    train(tmp_path, ImageLogger(**SMALL), data=data, epochs=1, limit_val_batches=0)
    assert {f"{what}.png" for what in OF_VECTORS} <= set(names(tmp_path))


def test_a_model_of_codes_has_the_pictures_of_codes(tmp_path):
    model = Model(4, posterior=partial(NearestCode, num_codes=5), prior=UniformCodes)
    train(tmp_path, ImageLogger(**SMALL), model=model, epochs=1, preprocess=Preprocess(corruption=torch.zeros_like))
    drawn = [f"{what}.png" for what in ("code_usage", "denoising", "reconstructions", "samples")]
    assert names(tmp_path, grids=False) == sorted([*drawn, *EXTRAS])
    assert names(tmp_path, grids=True) == [f"{what}_epoch=0001.png" for what in GRIDS]
    tags = events(tmp_path).Tags()
    assert tags["graph"] and not tags["histograms"]
    assert not list((tmp_path / "tensorboard").rglob("posterior_means"))


def test_a_picture_that_the_model_cannot_have_is_refused_before_training(tmp_path):
    with pytest.raises(UsageError, match=r"pictures has 'kl_per_layer', which needs several layers of latents"):
        train(tmp_path, ImageLogger(pictures=["samples", "kl_per_layer"], **SMALL))


def test_no_more_than_256_images_are_decoded_at_once(tmp_path):
    model = Model(2)
    train(tmp_path, ImageLogger(**SMALL | {"grid_size": 17}, pictures=["latent_grid"]), model=model, epochs=1)
    assert model.largest_batch == 256


def test_an_interruption_is_noticed_between_pictures(tmp_path):
    calls = iter([False] * 3)
    experiment = train(tmp_path, ImageLogger(**SMALL), epochs=1, stop_requested=lambda: next(calls, True))
    assert names(tmp_path, grids=False) == ["interpolations.png", "reconstructions.png", "samples.gif"]
    (warning,) = experiment.caveats["pictures"]
    assert warning.startswith("pictures were skipped: ") and "latent_scatter, aggregate_posterior" in warning


def test_a_picture_that_fails_is_a_warning_and_the_others_are_drawn(tmp_path, logged_warnings):
    class Diverged(Model):
        """Its weights leave no prior sample; distributions raise on such parameters."""

        def sample_latents(self, num_images, *args):
            if num_images > 1:
                raise RuntimeError("probability tensor contains inf or nan\nmore")
            return super().sample_latents(num_images, *args)

    experiment = train(tmp_path, ImageLogger(**SMALL), model=Diverged())
    warning = "samples could not be drawn: probability tensor contains inf or nan"
    assert experiment.caveats == {"samples": [warning]} and logged_warnings == [f"warning: {warning}"]
    assert names(tmp_path, grids=False) == sorted(
        ["network.png", *(f"{what}.png" for what in OF_VECTORS if what != "samples")]
    )


def test_diverged_weights_have_no_pictures_but_a_warning(tmp_path):
    class Diverged(Model):
        def encode(self, x, y=None):
            return super().encode(x if self.training else torch.nan * x)

    experiment = train(tmp_path, ImageLogger(**SMALL), model=Diverged(), epochs=1)
    (warning,) = experiment.caveats["pictures"]
    assert warning.startswith("pictures could not be drawn: ")


def test_signs_and_broken_bytes_in_class_names_are_no_failure(tmp_path):
    data = Data(class_names=("$5_$10", "$x^$", "\udce4"))
    assert train(tmp_path, ImageLogger(**SMALL), data=data, epochs=1).caveats == {}
    assert "latent_scatter.png" in names(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pictures": ["smaples"]}, "smaples.*samples"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
        ({"grid_size": 0}, "callbacks.images.grid_size is 0"),
        ({"interpolation": "cubic"}, "callbacks.images.interpolation is 'cubic'"),
    ],
)
def test_a_wrong_option_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ImageLogger(**options)


def test_hyperparameters_are_the_choices_and_the_usual_keys():
    config = {
        "seed": 1,
        "data": {"_target_": "vae_lab.data.sets.digits", "root": "/data", "batch_size": 64},
        "model": {"_target_": "vae_lab.models.VAE", "latent_dim": 8, "prior": {"_target_": "vae_lab.priors.VampPrior"}},
        "objective": {"regularizers": [{"_target_": "a.MMD"}, {"_target_": "a.DIP"}], "capacity": None},
        "callbacks": {"images": {"seed": 3}},
    }
    assert hyperparameters(config) == {
        "data": "digits",
        "model": "VAE",
        "model.prior": "VampPrior",
        "objective.regularizers": "MMD, DIP",
        "seed": 1,
        "data.batch_size": 64,
        "model.latent_dim": 8,
    }

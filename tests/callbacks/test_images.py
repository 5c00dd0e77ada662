"""The picture callbacks: what is in the event files and the images folder after a run."""

import io

import pytest
import torch
from helpers.drawing import SMALL, Data, events, mlp, names, train
from PIL import Image, ImageStat

from vae_lab.callbacks.images import ImageLogger
from vae_lab.callbacks.tensorboard import hyperparameters
from vae_lab.data.transforms import Preprocess
from vae_lab.figures.canvas import printable
from vae_lab.figures.pictures import PICTURES, Picture
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
def seen(fast_run):
    """The event files of a run of two epochs of three steps."""
    return events(fast_run.run)


def test_every_figure_is_a_png_and_a_summary_of_the_end(fast_run, seen):
    assert names(fast_run.run, grids=False) == sorted([*(f"{what}.png" for what in OF_VECTORS), *EXTRAS])
    for what in (*OF_VECTORS, "network"):
        (event,) = seen.Images(f"pictures/{what}")
        assert event.step == 6
        assert event.encoded_image_string == (fast_run.run / "images" / f"{what}.png").read_bytes()
        assert ImageStat.Stat(decoded(event).convert("L")).stddev[0] > 5, f"{what} is blank"


def test_every_grid_is_a_png_and_a_summary_of_every_epoch_and_a_frame_of_an_animation(fast_run, seen):
    assert names(fast_run.run, grids=True) == [f"{what}_epoch=000{epoch}.png" for what in GRIDS for epoch in (1, 2)]
    for what in GRIDS:
        shown = seen.Images(f"images/{what}")
        assert [event.step for event in shown] == [3, 6]
        for event, epoch in zip(shown, (1, 2), strict=True):
            assert decoded(event).size == (event.width, event.height)
            file = fast_run.run / "images" / f"{what}_epoch=000{epoch}.png"
            assert event.encoded_image_string == file.read_bytes()
    (event,) = seen.Images("images/samples.gif")
    assert decoded(event).n_frames == 2 and decoded(event).size == (event.width, event.height)


def test_histograms_and_graph_are_there(seen):
    tags = seen.Tags()
    assert set(tags["histograms"]) == {"latents/kl_per_dimension", "latents/aggregate_posterior"}
    assert len(seen.Histograms("latents/aggregate_posterior")) == 2
    assert tags["graph"] and "encoder" in str(seen.Graph())


def test_the_projector_has_points_classes_and_thumbnails(fast_run):
    folder = fast_run.run / "tensorboard" / "00006" / "posterior_means"
    assert len((folder / "tensors.tsv").read_text().splitlines()) == 180
    assert set((folder / "metadata.tsv").read_text().split()) == set("0123456789")
    assert Image.open(folder / "sprite.png").size == (14 * 28, 14 * 28)
    assert "posterior_means" in (fast_run.run / "tensorboard" / "projector_config.pbtxt").read_text()


def test_config_hyperparameters_and_a_chart_of_all_splits_are_there(seen):
    (text,) = seen.Tensors("config/text_summary")
    assert "latent_dim: 8" in text.tensor_proto.string_val[0].decode()
    metadata = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"model.latent_dim" in metadata and b"model/prior" in metadata and b"standard_normal" in metadata
    experiment = seen.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert all(name in experiment for name in (b"val/elbo", b"test/elbo", b"best/val/elbo"))
    assert {"test/elbo", "best/val/elbo"} <= set(seen.Tags()["scalars"])
    layout = seen.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert all(tag in layout for tag in (b"train/elbo", b"val/elbo", b"test/elbo"))


def test_pictures_take_time_and_nothing_half_written_is_left(fast_run):
    assert fast_run.summary["seconds_in"]["pictures"] > 0
    assert not list(fast_run.run.rglob("*.partial"))


def samples(**options):
    return ImageLogger(pictures=["samples"], **SMALL, **options)


def test_training_is_the_same_with_and_without_pictures(tmp_path):
    watched, alone = train(tmp_path / "with", samples(), epochs=2), train(tmp_path / "without", epochs=2)
    assert watched.noise == alone.noise
    assert all(module.training for module in watched.model.modules())
    for a, b in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_samples_come_from_the_same_latents_every_time(tmp_path):
    model, decoded = mlp(), []
    model.decoder.register_forward_pre_hook(lambda _, args: decoded.append(args[0]))
    train(tmp_path, samples(every_n_epochs=None, every_n_steps=1), model=model)
    drawn = [z for z in decoded if len(z) == SMALL["num_samples"] and not z.requires_grad]
    assert len(drawn) == 5 and all(z.equal(drawn[0]) for z in drawn)


@pytest.mark.parametrize(
    ("options", "trainer", "expected"),
    [
        ({"every_n_epochs": None, "every_n_steps": 3}, {"epochs": 2}, ["epoch=0002", "step=00000003", "step=00000006"]),
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


@pytest.mark.parametrize(
    ("latent_dim", "data"), [(1, Data(class_names=(), splits=("train",))), (2, Data(shape=(3, 8, 8)))]
)
def test_with_at_most_two_latents_their_grid_is_drawn_too(tmp_path, latent_dim, data):
    """Of grey images without labels and other splits, and of colour images."""
    model = mlp(f"model.latent_dim={latent_dim}", shape=data.x.shape[1:])
    train(tmp_path, ImageLogger(**SMALL), model=model, data=data)
    moving = {"latent_grid_epoch=0001.png", "latent_grid.gif"}
    assert {*(f"{what}.png" for what in OF_VECTORS), *moving} <= set(names(tmp_path))


def test_a_model_of_codes_has_the_pictures_of_codes(tmp_path):
    model = mlp("model/posterior=nearest_code", "model/prior=uniform_codes")
    train(tmp_path, ImageLogger(**SMALL), model=model, preprocess=Preprocess(corruption=torch.zeros_like))
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
    model, batches = mlp("model.latent_dim=2"), []
    model.decoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    train(tmp_path, ImageLogger(**SMALL | {"grid_size": 17}, pictures=["latent_grid"]), model=model)
    assert max(batches) == 256


def test_an_interruption_is_noticed_between_pictures(tmp_path):
    calls = iter([False] * 3)
    experiment = train(tmp_path, ImageLogger(**SMALL), stop_requested=lambda: next(calls, True))
    assert names(tmp_path, grids=False) == ["interpolations.png", "reconstructions.png", "samples.gif"]
    (warning,) = experiment.caveats["pictures"]
    assert warning.startswith("pictures were skipped: ") and "latent_scatter, aggregate_posterior" in warning


def test_a_picture_that_fails_is_a_warning_and_the_others_are_drawn(tmp_path, monkeypatch, logged_warnings):
    def fail(context):
        raise RuntimeError("probability tensor contains inf or nan\nmore")

    monkeypatch.setitem(PICTURES, "samples", Picture(fail))
    caveats = train(tmp_path, ImageLogger(**SMALL), epochs=2).caveats
    warning = "samples could not be drawn: probability tensor contains inf or nan"
    assert caveats == {"samples": [warning]} and logged_warnings == [warning]
    drawn = [f"{what}.png" for what in (*OF_VECTORS, "network") if what != "samples"]
    assert names(tmp_path, grids=False) == sorted(drawn)


def test_diverged_weights_have_no_pictures_but_a_warning(tmp_path):
    model = mlp()
    model.encoder.register_forward_hook(lambda *args: args[-1] if model.training else torch.nan * args[-1])
    (warning,) = train(tmp_path, ImageLogger(**SMALL), model=model).caveats["pictures"]
    assert warning.startswith("pictures could not be drawn: ")


def test_a_sign_is_drawn_if_a_font_has_it():
    assert printable("Größe 5₀ \U0010fffe\udce4") == "Größe 5₀ ??"


def test_signs_and_broken_bytes_in_class_names_are_no_failure(tmp_path):
    data = Data(class_names=("$5_$10", "$x^$", "\udce4"))
    assert train(tmp_path, ImageLogger(**SMALL), data=data).caveats == {}
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
        "model": {"_target_": "vae_lab.models.VAE", "latent_dim": 8},
        "objective": {"capacity": None},
        "callbacks": {"images": {"seed": 3}},
    }
    choices = {"data": "digits", "model": "conv", "model/prior": "vamp", "experiment": None, "callbacks": "default"}
    assert hyperparameters(config, choices) == {
        "data": "digits",
        "model": "conv",
        "model/prior": "vamp",
        "seed": 1,
        "data.batch_size": 64,
        "model.latent_dim": 8,
    }

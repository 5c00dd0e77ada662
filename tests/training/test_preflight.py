"""Whether a likelihood and the images go together is said before training, and what was left out of a run after it."""

from types import SimpleNamespace

import pytest
import torch
from helpers.steps import composed
from omegaconf import OmegaConf
from PIL import Image
from torch.distributions import Beta, Independent

from vae_lab.core import TrainingSpec
from vae_lab.data.datamodule import ImageDataModule
from vae_lab.data.images import DecodedImages
from vae_lab.likelihoods import Bernoulli
from vae_lab.training.build import build_model, build_node
from vae_lab.training.preflight import check_model, coverage_warnings
from vae_lab.utils.errors import UsageError


class Pixels:
    """A source of eight images of these values."""

    def __init__(self, *values: int, size: int = 8) -> None:
        self.pixels = torch.tensor(values, dtype=torch.uint8).repeat(size * size * 8)[: size * size * 8]
        self.pixels = self.pixels.view(8, 1, size, size)

    def __call__(self) -> DecodedImages:
        rows = torch.arange(8)
        return DecodedImages(self.pixels, {"train": rows, "val": rows[:0], "test": rows[:0]}, None, ())


class OpenBeta(Bernoulli):
    """A density on the open interval: 0 and 1 have none."""

    levels = None

    def forward(self, params):
        return Independent(Beta(params.exp() + 1, params.exp() + 1, validate_args=False), 3, validate_args=False)


def found(*overrides: str, values=(0, 90, 255), binarize="none", likelihood=None) -> list[str]:
    data = ImageDataModule(Pixels(*values), binarize=binarize)
    data.load()
    config = composed("model=mlp", "model.latent_dim=2", *overrides)
    model = build_model(config, data.image)
    if likelihood is not None:
        model.likelihood = likelihood(data.image)
    before = torch.get_rng_state()
    objective = build_node(config.objective, spec=TrainingSpec(data.image, model.latents, data.size("train")))
    found_warnings = check_model(model, objective, data)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    return found_warnings


@pytest.mark.parametrize(
    ("likelihood", "values", "binarize", "said"),
    [
        ("bernoulli", (0, 255), "none", None),
        ("bernoulli", (0, 90, 255), "threshold", None),
        ("bernoulli", (0, 90, 255), "dynamic", None),
        ("bernoulli", (0, 90, 255), "fixed", None),
        ("gaussian_optimal", (0, 90, 255), "dynamic", "no upper bound"),
        ("bernoulli", (0, 90, 255), "none", "cross-entropy on grey values is not a likelihood"),
        ("continuous_bernoulli", (0, 90, 255), "none", None),
        ("continuous_bernoulli", (0, 255), "none", "no upper bound"),
        ("gaussian", (0, 90, 255), "none", None),
        ("gaussian", (0, 90, 255), "threshold", "no upper bound"),
        ("gaussian_optimal", (0, 255), "none", "no upper bound"),
        ("gaussian_fixed", (0, 255), "none", None),
        ("laplace", (0, 255), "none", "no upper bound"),
        ("logistic_mixture", (0, 90, 255), "none", None),
        ("logistic_mixture", (0, 255), "none", "256 levels scores pixels that are only 0 or 1"),
        ("gaussian", (7,), "none", "every pixel of the first 8 training images is 7"),
        ("gaussian", (0, 1), "none", "the brightest pixel of the first 8 training images is 1 of 255"),
    ],
)
def test_each_pair_has_its_sentence(likelihood, values, binarize, said):
    found_warnings = found(f"model/likelihood={likelihood}", values=values, binarize=binarize)
    assert len(found_warnings) == (said is not None)
    assert said is None or said in found_warnings[0]


def test_a_density_that_has_none_for_these_pixels_is_refused():
    with pytest.raises(UsageError, match=r"OpenBeta gives 8 of the first 8 .*no finite log p\(x\|z\) \(found -inf\)"):
        found(likelihood=OpenBeta)
    assert found(likelihood=OpenBeta, values=(20, 90, 200)) == []


# --- at the end of a run ----------------------------------------------------------------------------------


def warnings_of(done):
    assert done.code == 0, done.stderr
    log = (done.run / "train.log").read_text()
    assert all(f"WARNING] - {warning}" in log for warning in done.summary["warnings"])
    return done.summary["warnings"]


SHORT = ("callbacks.images=null", "callbacks.baseline=null", "logger=null", "trainer.num_threads=1",
         "trainer.max_epochs=1", "trainer.limit_train_batches=2")  # fmt: skip


def test_a_run_that_left_nothing_out_says_nothing(command):
    assert warnings_of(command(*SHORT)) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("trainer.limit_val_batches=0",), "limit_val_batches=0: the val split was not evaluated"),
        (("data.eval_batch_size=20", "trainer.limit_test_batches=2"), "test metrics do not cover the whole split"),
    ],
)
def test_what_was_left_out_is_said_in_the_summary_and_at_the_end_of_the_log(command, options, said):
    assert any(said in warning for warning in warnings_of(command(*SHORT, *options)))


@pytest.mark.parametrize(("asked", "got", "said"), [(4, 1, True), (1, 1, False), ("auto", 1, False), (2, 2, False)])
def test_fewer_devices_than_asked_for_are_said(asked, got, said):
    data = SimpleNamespace(size=lambda split: 1)
    trainer = SimpleNamespace(world_size=got, limit_val_batches=1.0, limit_test_batches=1.0)
    config = OmegaConf.create({"trainer": {"devices": asked, "num_nodes": 1}})
    assert coverage_warnings(trainer, data, config) == (
        ["ran on 1 devices, fewer than trainer.devices=4"] if said else []
    )


CODES = ("model/posterior=nearest_code", "model/prior=uniform_codes")


def test_an_autoencoder_has_no_bound():
    (found_warnings,) = found("model/posterior=delta", "model/prior=flat", binarize="threshold")
    assert "elbo is not a bound on log p(x): Deterministic and Flat have no density" in found_warnings


def test_a_codebook_larger_than_the_training_set_is_told_of():
    (found_warnings,) = found(*CODES, "model.posterior.num_codes=512", binarize="threshold")
    assert (
        "a codebook of 512 codes is larger than the training set of" in found_warnings
        and "num_codes=" in found_warnings
    )
    assert found(*CODES, "model.posterior.num_codes=2", binarize="threshold") == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model/prior=flat", "model/posterior=delta", "objective/regularizers=[mmd]"], "model.prior"),
        (["model/posterior=planar", "objective/regularizers=[total_correlation]"], "model/posterior=diagonal_gaussian"),
        (["model/posterior=planar", "objective/bound=dreg", "objective.num_samples=2"], "importance_weighted"),
        (
            ["model/likelihood=gaussian_optimal", "objective/bound=importance_weighted", "objective.num_samples=2"],
            "model/likelihood=gaussian, whose scale is learned",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused_before_training(overrides, words):
    with pytest.raises(UsageError, match=words):
        found(*overrides, binarize="threshold")


def test_pictures_without_colour_are_told_of(command, tmp_path):
    (tmp_path / "grey").mkdir()
    for i in range(30):
        Image.new("L", (16, 16), 8 * i).save(tmp_path / "grey" / f"{i}.png")
    done = command(*SHORT, "data=folder", f"data.folder={tmp_path}/grey", "data.image_size=16")
    assert any("have no colour" in warning for warning in warnings_of(done))

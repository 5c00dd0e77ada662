"""The comparison with probabilistic PCA at the end of a run."""

from types import SimpleNamespace

import pytest
import torch
from helpers.data import FAST
from helpers.steps import small_model

from vae_lab import load
from vae_lab.callbacks.baseline import Baseline
from vae_lab.data.sets import digits
from vae_lab.metrics.baseline import fit_ppca

QUICK = (*FAST, "callbacks.images=null", "logger=null", "trainer.max_epochs=1")


def test_a_run_compares_its_reconstructions_with_those_of_pca(fast_run):
    found, metrics = fast_run.summary["baseline"], fast_run.summary["metrics"]
    data = digits(binarize="threshold", eval_batch_size=16)
    data.setup()
    pca = fit_ppca(lambda: (x.flatten(1) for x, _ in data.first_images("train")), 8)
    x = torch.cat([x for x, _ in data.first_images("test", 32)])  # two batches, as debug=fast tests
    mse = (pca.reconstruct(x.flatten(1)).view_as(x) - x).square().mean()
    assert found.pop("mse") == pytest.approx(float(mse))
    assert found == {"name": "probabilistic PCA", "num_latents": 8, "num_images": 1437}
    ours = (load(fast_run.run).reconstruct(x) - x).square().mean()
    assert metrics["test/mse"] == pytest.approx(float(ours), rel=1e-4)
    log = (fast_run.run / "train.log").read_text()
    for line in (f"mse {metrics['test/mse']:.5f}  elbo {metrics['test/elbo']:.2f}", f"8 latents  mse {mse:.5f}"):
        assert line in fast_run.stderr and line in log


def test_a_density_is_compared_with_the_exact_log_likelihood(command):
    done = command(*QUICK, "data.binarize=none", "model/likelihood=gaussian_optimal")
    assert done.code == 0, done.stderr
    assert done.summary["baseline"]["log_likelihood"] > done.summary["metrics"]["test/elbo"]  # after three steps
    assert f"log_likelihood {done.summary['baseline']['log_likelihood']:.2f}" in done.stderr


def test_colour_pictures_have_chroma(command, pictures):
    done = command(*QUICK, "data=folder", f"data.folder={pictures}", "data.image_size=16", "model.latent_dim=4")
    assert done.code == 0, done.stderr
    assert {"mse", "chroma", "reconstruction_nll", "log_likelihood"} < set(done.summary["baseline"])
    assert {"test/mse", "test/chroma", "test/reconstruction_nll"} < set(done.summary["metrics"])


def test_several_layers_of_latents_are_counted_together(command):
    done = command(*QUICK, "model=ladder", "data.image_size=16")
    assert done.code == 0, done.stderr
    latents, reason = (done.summary["baseline"][name] for name in ("num_latents", "left_out"))
    assert latents > 256 and reason == f"{latents} latents hold all 256 values of an image"


def test_a_run_that_is_asked_to_stop_abandons_it():
    data = digits(eval_batch_size=500)
    data.setup()
    asked = iter([False, True])
    module = SimpleNamespace(
        evaluation_model=small_model(), device=torch.device("cpu"), seed=0, stop_requested=lambda: next(asked),
        metrics={}, stopwatch=SimpleNamespace(timed=lambda _: torch.no_grad()), baseline=None,
    )  # fmt: skip
    trainer = SimpleNamespace(is_global_zero=True, datamodule=data, loggers=[], global_step=1, num_test_batches=[1],
                              world_size=1)  # fmt: skip
    Baseline().on_test_end(trainer, module)
    assert module.baseline["left_out"] == "the run was asked to stop" and module.metrics == {}

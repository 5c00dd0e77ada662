"""What is saved, monitored and reported belongs to one set of weights, and is what a loaded run computes."""

import signal

import pytest
import torch
from helpers.commands import QUIET
from helpers.named import stop_at
from helpers.steps import composed, model_of

from vae_lab import load
from vae_lab.callbacks.monitors import chosen_monitor
from vae_lab.core import TrainingSpec
from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.training.build import build_node
from vae_lab.utils.rng import EVALUATE, seed_noise

VARIANCE = ("data.binarize=none", "model/likelihood=gaussian_optimal", "trainer.steps_per_execution=1")


@pytest.mark.parametrize("decay", ["null", "0.9"])
def test_a_variance_saved_within_an_epoch_is_that_of_the_saved_weights(command, decay):
    """last.ckpt of a step within the first epoch; best.ckpt and last.ckpt of a run that ends at this step."""
    options = (*QUIET, *VARIANCE, f"optimizer.ema_decay={decay}")
    stopped = command(*options, *stop_at(2, "step", signal.SIGTERM))
    ended = command(*options, "trainer.max_steps=2", "hydra.run.dir=ended")
    assert (stopped.code, ended.code) == (143, 0), stopped.stderr + ended.stderr
    runs = [
        (command.cwd / "ended", "best"),
        (command.cwd / "ended", "last"),
        (next(command.cwd.glob("outputs/*/*")), "last"),
    ]
    images, found = torch.rand(4, 1, 28, 28), []
    for run, name in runs:
        assert load_checkpoint(run / f"checkpoints/{name}.ckpt")["global_step"] == 2
        lab = load(run, name, trusted=True)  # its config names a class of the tests
        torch.manual_seed(0)
        found.append(lab.log_likelihood(images, 8))
        assert float(lab.model.likelihood.mse) != pytest.approx(0.1)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], rtol=0.01, atol=0)  # fitted to few images in the seconds left


def test_under_bf16_the_test_is_what_a_loaded_run_computes_in_float32(command):
    done = command(*QUIET, "trainer.precision=bf16-mixed", "optimizer.lr=0.01")
    assert done.code == 0, done.stderr
    lab, count, total = load(done.run), 0, 0.0
    data = build_node(lab.config.data)
    data.setup()
    objective = build_node(lab.config.objective, spec=None)
    for number, batch in enumerate(data.test_dataloader()):
        if number == 2:  # of debug=fast
            break
        seed_noise(torch.device("cpu"), 0, EVALUATE, 0, number)
        x = data.preprocess.evaluate(batch.images)
        terms = objective.terms(lab.model(x), x)
        total += float((terms.log_px - terms.kl.sum(0)).sum())
        count += len(x)
    assert done.summary["metrics"]["test/elbo"] == pytest.approx(total / count, abs=1e-3)


LOSS, ELBO = {"monitor": "val/loss", "mode": "min"}, {"monitor": "val/elbo"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [((), ELBO), (("objective.beta=4",), ELBO), (("objective/constraint=geco",), ELBO), (("objective.beta=0",), LOSS),
     (("objective/bound=importance_weighted", "objective.num_samples=2"), LOSS),
     (("objective/bound=dreg", "objective.num_samples=2"), LOSS),
     (("model/posterior=delta", "model/prior=flat"), LOSS), (("callbacks.best.monitor=val/kl",), {})],
)  # fmt: skip
def test_the_best_weights_go_by_what_is_minimised(overrides, expected):
    config, model = composed("data=digits", *overrides), model_of("data=digits", *overrides)
    objective = build_node(config.objective, spec=TrainingSpec(model.image, model.latents, 10))
    assert chosen_monitor(config.callbacks.best, model, objective) == expected
    assert chosen_monitor(config.callbacks.last, model, objective) == {}


def test_at_beta_0_the_best_metrics_and_early_stopping_go_by_the_loss(command):
    """With a regularizer of large weight, so that the smallest loss is not at the largest ELBO."""
    done = command("experiment=info_vae", "data=digits", *QUIET, "callbacks=early_stopping", "callbacks.images=null",
                   "trainer.max_epochs=4", "optimizer.lr=0.01", "objective.regularizers.mmd.weight=100000")  # fmt: skip
    assert done.code == 0, done.stderr
    lines = (done.run / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    best = min(rows, key=lambda row: float(row["val/loss"]))
    assert done.summary["best_metrics"]["val/loss"] == float(best["val/loss"])
    saved = load_checkpoint(done.run / "checkpoints/best.ckpt")
    assert saved["global_step"] == int(best["step"])
    monitors = {state.get("monitor") for state in saved["callbacks"].values()}
    assert monitors & {"val/loss", "val/elbo"} == {"val/loss"}

"""python -m vae_lab.train as a user runs it: the run directory, the numbers, sweeps."""

import csv
import json
import math

import pytest
import torch
from helpers.commands import QUIET, Command
from helpers.data import FAST

from vae_lab import load
from vae_lab.data.sets import digits

SUMMARY_KEYS = {
    "status", "metrics", "best_metrics", "baseline", "warnings", "images_per_second",
    "images_per_second_whole_run", "seconds", "seconds_in", "epochs", "steps",
    "num_parameters", "device", "precision", "seed", "config_hash", "versions", "git",
}  # fmt: skip


def table(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_run_directory_keeps_its_contract(fast_run):
    run = fast_run.run
    assert run.parent.name == "mlp-digits"
    for name in (".hydra/config.yaml", "train.log", "metrics.csv", "summary.json", "checkpoints/best.ckpt",
                 "checkpoints/last.ckpt", "images/samples_epoch=0002.png", "images/samples.png"):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert "val elbo" in (run / "train.log").read_text()


def test_summary_json_keeps_its_contract(fast_run):
    summary = fast_run.summary
    assert set(summary) == SUMMARY_KEYS
    assert summary["status"] == "completed"
    assert (summary["epochs"], summary["steps"], summary["seed"]) == (2, 6, 0)
    assert summary["device"] == "cpu" and summary["precision"] == "32-true"
    assert len(summary["config_hash"]) == 64
    assert {"python", "torch", "lightning", "vae_lab"} <= set(summary["versions"])
    assert summary["images_per_second"] > 0 and summary["seconds"] > 0
    assert 0 < summary["images_per_second_whole_run"] < summary["images_per_second"]
    parts = summary["seconds_in"]
    assert set(parts) == {"training", "validation", "pictures", "checkpoints", "last_pictures", "baseline"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) < summary["seconds"]
    assert summary["num_parameters"] == sum(p.numel() for p in load(fast_run.run).model.parameters())


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_metrics_have_their_names_and_add_up(fast_run, split):
    metrics = fast_run.summary["metrics"]
    assert metrics[f"{split}/elbo"] == pytest.approx(metrics[f"{split}/log_px"] - metrics[f"{split}/kl"], abs=1e-3)
    assert metrics[f"{split}/loss"] == pytest.approx(-metrics[f"{split}/elbo"], abs=1e-3)
    if split != "train":
        assert 0 < metrics[f"{split}/elbo_stderr"] < -metrics[f"{split}/elbo"]
        bits = -metrics[f"{split}/elbo"] / (784 * math.log(2))
        assert metrics[f"{split}/bits_per_dim"] == pytest.approx(bits, rel=1e-5)


def test_metrics_csv_has_a_row_per_validation(fast_run):
    rows = table(fast_run.run)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    assert float(rows[-1]["val/elbo"]) == fast_run.summary["metrics"]["val/elbo"]
    kls = [name for name in rows[0] if name.startswith("kl/dim_")]
    assert len(kls) == 8
    assert sum(float(rows[-1][name]) for name in kls) == pytest.approx(float(rows[-1]["val/kl"]), rel=1e-4)
    assert 0 <= float(rows[-1]["active_units"]) <= 8


def test_the_best_metrics_are_those_of_the_best_validation(fast_run):
    best = max(table(fast_run.run), key=lambda row: float(row["val/elbo"]))
    assert fast_run.summary["best_metrics"]["val/elbo"] == float(best["val/elbo"])


def test_a_run_loads_in_python(fast_run):
    lab = load(fast_run.run)
    images = torch.rand(3, 1, 28, 28)
    assert lab.encode(images).mean.shape == (3, 8)
    assert lab.reconstruct(images).shape == (3, 1, 28, 28)
    samples = lab.sample(5)
    assert samples.shape == (5, 1, 28, 28) and samples.min() >= 0 and samples.max() <= 1
    with pytest.raises(ValueError, match=r"expected a float32 torch.Tensor \(B, 1, 28, 28\)"):
        lab.encode(torch.rand(3, 28, 28))


def test_the_same_seed_gives_the_same_numbers(command, fast_run):
    again = command(*FAST, "trainer.steps_per_execution=2", "callbacks.images=null")
    assert again.summary["config_hash"] != fast_run.summary["config_hash"]
    assert (again.run / "metrics.csv").read_bytes() == (fast_run.run / "metrics.csv").read_bytes()
    weights = [torch.load(f.run / "checkpoints/last.ckpt")["state_dict"] for f in (again, fast_run)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_multirun_gives_a_directory_and_a_metric_each(command):
    sweep = command("-m", *QUIET, "seed=1,2", "trainer.max_epochs=1")
    assert sweep.code == 0, sweep.stderr
    summaries = sorted(sweep.cwd.glob("outputs/sweeps/*/*/summary.json"))
    assert [path.parent.name for path in summaries] == ["0", "1"]
    found = [json.loads(path.read_text()) for path in summaries]
    assert [run["seed"] for run in found] == [1, 2]
    assert found[0]["metrics"]["val/elbo"] != found[1]["metrics"]["val/elbo"]
    assert found[0]["config_hash"] == found[1]["config_hash"]


def test_a_sweep_is_given_the_metric_of_the_best_weights_not_of_the_last(command):
    done = command(
        *QUIET, "optimizer.lr=0.3", "trainer.max_epochs=4", "+hydra.callbacks.keep._target_=helpers.named.KeepReturn"
    )
    assert done.code == 0, done.stderr
    best, last = (done.summary[name]["val/elbo"] for name in ("best_metrics", "metrics"))
    assert float((done.run / "returned.txt").read_text()) == best > last


def test_without_validation_the_last_weights_are_the_best(command):
    done = command(*QUIET, "data.val_size=0")
    assert done.code == 0, done.stderr
    metrics = done.summary["metrics"]
    assert "val/elbo" not in metrics and metrics["test/elbo"] < 0
    assert "no validation images" in done.summary["warnings"][0]
    best, last = (torch.load(done.run / f"checkpoints/{name}.ckpt")["state_dict"] for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in best)
    assert len(table(done.run)) == 2


def test_init_from_starts_from_another_runs_weights(command, fast_run):
    done = command(*QUIET, f"init_from={fast_run.run}", "optimizer.lr=0", "trainer.max_epochs=1")
    assert done.code == 0, done.stderr
    ours, theirs = load(done.run).model.state_dict(), load(fast_run.run).model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    other = command(*QUIET, f"init_from={fast_run.run}", "model.latent_dim=3", cwd=command.cwd)
    assert other.code == 2
    assert "do not fit this model" in other.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("model=conv", "optimizer=adamw", "optimizer/schedule=cosine", "optimizer.clip_norm=1"),
        ("model=resnet", "optimizer.accumulate=2", "objective/beta_schedule=linear_warmup", "model.latent_dim=2"),
        ("model/likelihood=laplace", "data.binarize=none", "objective.kl=monte_carlo", "data.shift=2"),
        ("model/likelihood=logistic_mixture", "data.binarize=none", "data.image_size=8", "objective.free_bits=0.1"),
        ("objective/bound=importance_weighted", "objective.num_samples=3", "data.binarize=fixed", "trainer=cpu"),
    ],
    ids=lambda options: options[0],
)
def test_every_kind_of_part_trains(command, options):
    done = command(*QUIET, *options, "trainer.max_epochs=1")
    assert done.code == 0, done.stderr
    assert math.isfinite(done.summary["metrics"]["test/elbo"])
    assert ("test/bits_per_dim" in done.summary["metrics"]) is ("laplace" not in options[0])


def test_a_folder_of_pictures_trains_with_a_likelihood_for_colour(command, pictures):
    done = command(*FAST, "model=conv", "data=folder", f"data.folder={pictures}", "data.image_size=16",
                   "model/likelihood=gaussian_color")  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.run.parent.name == "conv-folder"
    assert "ColorGaussian" in (done.run / ".hydra/config.yaml").read_text()
    assert (done.run / "images/reconstructions_epoch=0002.png").exists()
    covariance = torch.load(done.run / "checkpoints/best.ckpt")["state_dict"]["average.model.likelihood.covariance"]
    assert covariance[0, 1] != 0  # fitted to training images


def test_pictures_in_patches_train(command, pictures):
    done = command(*QUIET, "model=ladder", "model.patch_size=4", "data=folder", f"data.folder={pictures}",
                   "data.image_size=16", "trainer.max_steps=3", "trainer.max_epochs=-1",
                   "trainer.steps_per_execution=2")  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.summary["steps"] == 3 and math.isfinite(done.summary["metrics"]["test/elbo"])


@pytest.fixture(scope="module")
def averaged_run(warm, tmp_path_factory):
    """A run with averaged weights, 40 latents, a fitted likelihood and a profiler; do not write into it."""
    fitted = ("model/likelihood=gaussian_optimal", "data.binarize=none", "trainer.profiler=simple")
    done = Command(warm, tmp_path_factory.mktemp("averaged"))(
        *QUIET, *fitted, "optimizer.ema_decay=0.5", "model.latent_dim=40", "trainer.max_epochs=3"
    )
    assert done.code == 0, done.stderr
    return done


def test_ema_weights_are_what_is_evaluated(averaged_run):
    state = torch.load(averaged_run.run / "checkpoints/best.ckpt")["state_dict"]
    average = load(averaged_run.run).model.state_dict()
    assert all(torch.equal(average[name], state[f"average.model.{name}"]) for name in average)
    assert any(not torch.equal(state[f"model.{name}"], state[f"average.model.{name}"]) for name in average)


def test_the_report_of_a_profiler_is_written_into_the_run_directory(averaged_run):
    assert "run_training_batch" in (averaged_run.run / "fit-profile.txt").read_text()


def test_at_most_32_dimensions_are_logged_and_none_is_stale(averaged_run):
    for row in table(averaged_run.run):
        kls = [float(value) for name, value in row.items() if name.startswith("kl/dim_") and value]
        assert len(kls) == 32
        assert sum(kls) <= float(row["val/kl"]) + 1e-4
    assert sum(name.startswith("kl/dim_") for name in averaged_run.summary["metrics"]) == 32


def test_a_fitted_likelihood_is_fitted_to_training_images_before_it_is_evaluated(averaged_run):
    lab = load(averaged_run.run)
    data = digits(eval_batch_size=16)
    data.setup()
    images = torch.cat([x for x, _ in data.first_images("train", 512)])
    errors = (lab.model.decode(lab.encode(images).rsample()).mean - images).square().mean()
    assert float(lab.model.likelihood.mse) == pytest.approx(float(errors), rel=0.05)

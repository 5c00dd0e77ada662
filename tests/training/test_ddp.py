"""Several devices: a run on two processes is one run, and its numbers are those of its weights."""

import csv
import json
import math
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from helpers.commands import QUIET, Command
from helpers.steps import SMALL_MLP, composed, images_of
from helpers.torchrun import torchrun
from torch import nn
from torch.testing import assert_close

from vae_lab import load
from vae_lab.core import ImageSpec
from vae_lab.metrics.elbo_sums import ElboSums
from vae_lab.runs.resume import read_summary
from vae_lab.training.build import build_module, build_node
from vae_lab.training.ddp import AllReduceStrategy
from vae_lab.training.step import TrainingStep
from vae_lab.utils.distributed import Share, all_reduce_mean
from vae_lab.utils.rng import EVALUATE, seed_noise

pytestmark = pytest.mark.slow  # each test starts processes of its own

VALIDATED = 65  # in batches of 16: the last has an image for the first process only


# --- averaging alone --------------------------------------------------------------------------------------


def gradients_of(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), (), (2, 1, 2))]


def average_gradients(rank: int, folder: str, count: int) -> None:
    """One process of `count`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count,
                            timeout=timedelta(seconds=30))  # fmt: skip

    class Strategy(AllReduceStrategy):
        world_size = count

    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients_of(rank)]
    for p, g in zip(parameters, gradients_of(rank), strict=True):
        p.grad = g
    parameters.insert(1, nn.Parameter(torch.zeros(7)))  # without a gradient
    strategy = Strategy()
    strategy.reduce_gradients(parameters)
    torch.save([None if p.grad is None else p.grad for p in parameters], f"{folder}/reduced{rank}.pt")
    strategy.model = nn.BatchNorm1d(3)
    with torch.no_grad():
        strategy.model.weight.fill_(rank + 5)
        strategy.model.running_mean.fill_(rank + 7)
    strategy.configure_ddp()
    torch.save(strategy.model.state_dict(), f"{folder}/started{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def averaged(request, tmp_path_factory):
    """What each of some forked processes has after averaging."""
    folder, count = tmp_path_factory.mktemp("averaged"), request.param
    torch.multiprocessing.start_processes(average_gradients, (str(folder), count), count, start_method="fork")
    return [{name: torch.load(folder / f"{name}{rank}.pt") for name in ("reduced", "started")}
            for rank in range(count)]  # fmt: skip


def test_each_gradient_becomes_its_mean_over_processes(averaged):
    count = len(averaged)
    mean = [sum(parts) / count for parts in zip(*(gradients_of(rank) for rank in range(count)), strict=True)]
    for result in averaged:
        reduced = result["reduced"]
        assert reduced.pop(1) is None
        assert_close(reduced, mean)
        assert all(torch.equal(a, b) for a, b in zip(reduced, averaged[0]["reduced"], strict=False))


def test_every_process_starts_from_the_weights_and_buffers_of_the_first(averaged):
    for result in averaged:
        assert result["started"]["weight"].tolist() == [5.0] * 3
        assert result["started"]["running_mean"].tolist() == [7.0] * 3


# --- training steps ---------------------------------------------------------------------------------------

# The mean of the losses over both processes is that of one process with batches twice as large.
SAME = {
    "augmented, binarised, corrupted": [*SMALL_MLP, "data.binarize=dynamic", "data.shift=1", "data.flip=true",
                                        "data/corruption=masked"],
    "several samples": [*SMALL_MLP, "objective.num_samples=3", "objective/bound=importance_weighted"],
    "accumulated": [*SMALL_MLP, "optimizer.accumulate=2", "data.batch_size=4"],
    "layers": ["model=ladder", "model.latent_dim=2", "model.layers=[1,1]", "objective.num_samples=2"],
    "relaxed codes": ["model=spatial", "model/posterior=relaxed_categorical", "model/prior=uniform_codes",
                      "model.latent_dim=2", "objective.num_samples=2"],
    "sphere": [*SMALL_MLP, "model/posterior=von_mises_fisher", "model/prior=uniform_sphere"],
}  # fmt: skip


def losses(overrides: list[str], share: Share) -> list[float]:
    """Of 20 steps in float64, the sixth of them on 7 images and the eleventh on one."""
    config = composed(*overrides)
    data, settings = build_node(config.data), build_node(config.optimizer)
    module = build_module(config, data, ImageSpec(1, 8, 8, 2), 100, settings).double().train()
    strategy = type("Strategy", (AllReduceStrategy,), {"world_size": share.world_size})()
    reduce = strategy.reduce_gradients if share.world_size > 1 else None
    size = 8 // share.world_size // settings.accumulate
    step = TrainingStep(module.model, module.objective, module.preprocess, module.configure_optimizers(), settings,
                        size, 20, 0, share, reduce_gradients=reduce)  # fmt: skip
    records = [step(images_of({5: 7, 10: 1}.get(i, 8), seed=i), i).terms for i in range(20)]
    return [float(all_reduce_mean(terms)[0]) for terms in records]


def train_share(rank: int, store: str, overrides: list[str], found: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(losses(overrides, Share(rank, 2)), f"{found}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("case", SAME)
def test_twenty_steps_of_two_processes_have_the_losses_of_one(case, tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # densities are float32 in every precision
    torch.set_default_dtype(torch.float64)
    try:
        names = (str(tmp_path / "store"), SAME[case], str(tmp_path / "found"))
        torch.multiprocessing.start_processes(train_share, names, 2, start_method="fork")
        one = losses(SAME[case], Share())
    finally:
        torch.set_default_dtype(torch.float32)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"found{rank}.pt") == pytest.approx(one, rel=1e-12)
    assert one[-1] != one[-2]


# --- a whole run ------------------------------------------------------------------------------------------


def evaluated_on_one(run: Path) -> dict[str, float]:
    """Validation of the saved best weights by this one process."""
    lab = load(run, trusted=True)  # its config names a class of this file
    data, objective = build_node(lab.config.data), build_node(lab.config.objective, spec=None)
    data.setup()
    sums = ElboSums.for_latents(lab.model.latents)
    for number, batch in enumerate(data.val_dataloader()):
        seed_noise(torch.device("cpu"), 0, EVALUATE, 0, number)
        x = data.preprocess.evaluate(batch.images)
        trace = lab.model(x)
        terms = objective.terms(trace, x)
        loss, _ = objective(lab.model.regularizer_inputs(trace, x, None), terms, objective.weights_at(6, 6))
        sums.update(trace, terms, loss)
    assert int(sums.count) == VALIDATED
    return {f"val/{name}": float(value) for name, value in sums.compute().items()}


@pytest.fixture(scope="module")
def run(warm, tmp_path_factory):
    """Of a sweep whose jobs have two processes each, the second; its likelihood keeps a running average."""
    devices = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    likelihood = ("model/likelihood=gaussian_optimal", "data.binarize=none", "optimizer.ema_decay=0.5")
    data = ("data.shift=1", f"data.val_size={VALIDATED}", "trainer.limit_val_batches=null")
    keep = "+callbacks.keep._target_=helpers.named.KeepState"
    jobs = ("-m", "optimizer.lr=1e30,1e-3")  # the first one fails
    done = Command(warm, tmp_path_factory.mktemp("ddp"))(*QUIET, *devices, *likelihood, *data, keep, *jobs)
    failed, run = sorted(path.parent for path in done.cwd.glob("outputs/sweeps/*/*/summary.json"))
    assert (done.code, read_summary(failed)["status"]) == (1, "failed"), done.stderr[-4000:]
    return run, done.stdout + done.stderr


def states(folder: Path) -> list[dict]:
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_two_processes_make_one_run(run):
    folder, _ = run
    assert [path.name for path in sorted(folder.parent.iterdir()) if path.is_dir()] == ["0", "1"]
    assert not [path for path in folder.iterdir() if "process" in path.name]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["device"] == "2 x cpu"
    assert (summary["epochs"], summary["steps"]) == (2, 6)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    assert float(rows[-1]["val/elbo"]) == summary["metrics"]["val/elbo"]
    assert math.isfinite(summary["metrics"]["test/elbo"])


def test_both_processes_have_the_same_weights(run):
    ours, theirs = states(run[0])
    assert ours["step"] == theirs["step"] == 6
    names = [name for name in ours["state"] if ".likelihood." not in name]
    assert len(names) > 10
    assert [name for name in names if not torch.equal(ours["state"][name], theirs["state"][name])] == []


def test_both_processes_have_the_same_running_averages(run):
    ours, theirs = (state["state"] for state in states(run[0]))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_both_processes_know_the_same_validation(run):
    ours, theirs = ({name: value for name, value in state["metrics"].items() if not name.startswith("train/")}
                    for state in states(run[0]))  # fmt: skip
    assert {name for name in ours if name.startswith(("val/", "kl/", "active"))} <= set(theirs)
    different = [name for name in theirs if name.startswith(("val/", "kl/")) and ours.get(name) != theirs[name]]
    assert different == []


def test_the_validation_is_that_of_the_saved_weights_over_each_image_once(run):
    best = json.loads((run[0] / "summary.json").read_text())["best_metrics"]
    expected = evaluated_on_one(run[0])
    assert {name: best[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_two_processes_resume_their_run(run, command, tmp_path):
    shutil.copytree(run[0], tmp_path / "copy")
    done = command("resume=copy", "trainer.max_epochs=3", "trusted=true")  # its config names a class of this file
    assert done.code == 0, done.stderr
    summary = read_summary(tmp_path / "copy")
    assert (summary["status"], summary["steps"], summary["device"]) == ("completed", 9, "2 x cpu")


def test_the_log_is_free_of_advice_about_several_devices(run):
    assert "sync_dist" not in run[1]


# --- torchrun ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "code", "message"), [
    (["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true"], None, ""),
    (["trainer=cpu"], 2, "torchrun started 2 processes under trainer.strategy=auto: use trainer=ddp"),
    (["-m", "seed=1,2"], 2, "a sweep under torchrun"),
    (["trainer=ddp", "hydra.run.dir=taken"], 2, "taken: already holds a run"),
])  # fmt: skip
def test_torchrun_starts_one_run_and_a_refusal_is_said_once(words, code, message, tmp_path):
    (tmp_path / "taken" / ".hydra").mkdir(parents=True)
    codes, said = torchrun("vae_lab.train", [*QUIET, *words], tmp_path)
    assert codes == [code or 0] * 2, said
    assert message in said[0] and "error" not in said[1]
    assert len([*tmp_path.glob("outputs/*/*/summary.json")]) == (code is None)
    assert not [*tmp_path.glob("outputs/*/*/.hydra")] or code is None

"""python -m vae_lab.search as a user runs it: workers, pruning, failures, going on."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from helpers.commands import QUIET, wait_for
from helpers.refusals import refused
from optuna.trial import TrialState

from vae_lab.runs.search.space import parse_space
from vae_lab.utils.errors import UsageError

ROOT = Path(__file__).parents[1]
SEARCH = ("search.dir=study", "search.grace=3", *QUIET)
LATENTS = "model.latent_dim=choice(2,3,4)"
SAVES = "callbacks.last.every_n_seconds=0"


def study_at(folder):
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")


def states(study):
    return [trial.state for trial in study.trials]


def test_a_search_continues_shows_failures_and_repeats_the_best(command):
    wrong = ("model.latent_dim=choice(0,2,3)", "search/sampler=grid")  # 0 is refused by the run, not by the search
    done = command(*SEARCH, *wrong, "search.num_trials=1", module="vae_lab.search")
    assert done.stderr.startswith("trial 0")
    done = command(*SEARCH, *wrong, module="vae_lab.search")  # until the grid is exhausted
    assert done.code == 0, done.stderr
    study = study_at(command.cwd / "study")
    assert sorted(state.name for state in states(study)) == ["COMPLETE", "COMPLETE", "FAIL"]
    (failed,) = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert "at least 1" in failed.user_attrs["error"] and failed.user_attrs["error"] in done.stdout
    rows = re.findall(r"^(-[\d.]+) +\d +/.*study/\d$", done.stdout, re.MULTILINE)
    assert [float(row) for row in rows] == sorted(map(float, rows), reverse=True) and len(rows) == 2
    again = shlex.split(done.stdout.partition("python -m vae_lab.train ")[2])
    assert command(*again).summary["best_metrics"]["val/elbo"] == pytest.approx(study.best_value, abs=1e-12)
    for changed, words in (
        ({LATENTS}, ["study", "another space", "search.dir"]),
        ({*wrong, "optimized_metric=val/kl"}, ["another metric"]),
    ):
        refused(command(*SEARCH, *changed, module="vae_lab.search"), *words)


def test_hopeless_trials_are_pruned_and_count(command):
    """In a space of the user's own folder."""
    (command.cwd / "own/search").mkdir(parents=True)
    (command.cwd / "own/search/mine.yaml").write_text(f"space: ['{LATENTS}']")
    pruner = ("search/pruner=null", "search.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 1e4}")
    options = ("search=mine", "--config-dir", "own", "trainer.max_epochs=2000", "search.num_trials=2")
    done = command(*SEARCH, *options, *pruner, module="vae_lab.search")
    assert done.code == 1 and "no trial" in done.stderr and "pruned at epoch 1" in done.stdout
    study = study_at(command.cwd / "study")
    assert states(study) == [TrialState.PRUNED] * 2
    assert study.trials[0].value is not None and (command.cwd / "study/1/checkpoints/last.ckpt").exists()


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_is_resumed_by_another(command):
    """The other worker is a plain process, and forks its trials from a server of its own."""
    options = [*SEARCH, LATENTS, "search.num_trials=2", "trainer.max_epochs=30", "search/pruner=null"]
    killed = command.start(*options, SAVES, module="vae_lab.search")
    wait_for((command.cwd / "study/0/checkpoints/last.ckpt").exists)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    env = os.environ | {"VAE_LAB_CACHE": str(command.cwd / "cache")}
    worker = [sys.executable, "-m", "vae_lab.search", *options]
    done = subprocess.run(worker, cwd=command.cwd, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    study = study_at(command.cwd / "study")
    assert sorted(state.name for state in states(study)) == ["COMPLETE"] * 2 + ["FAIL"]
    (again,) = [
        trial for trial in study.trials if trial.user_attrs["run"] == "0" and trial.state == TrialState.COMPLETE
    ]
    assert again.params == study.trials[0].params and again.number > 0
    assert "resumed at step" in (command.cwd / "study/0/train.log").read_text()


def test_ctrl_c_stops_the_trial_which_is_tried_again(command):
    options = (*SEARCH, LATENTS, SAVES, "search.num_trials=1", "trainer.max_epochs=2000")
    started = command.start(*options, module="vae_lab.search")
    wait_for((command.cwd / "study/0/checkpoints/last.ckpt").exists)
    os.kill(started.pid, signal.SIGINT)
    done = started.wait()
    assert done.code == 130 and "the same command continues" in done.stderr and "Traceback" not in done.stderr
    assert states(study_at(command.cwd / "study")) == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["search.num_trials=0"], ["search.num_trials=0", "at least 1"]),
        (["model.latent_dimm=choice(1,2)"], ["latent_dimm", "did you mean model.latent_dim?"]),
        (["search/sampler=grid", "optimizer.lr=interval(0.1,1)"], ["search.sampler", "step"]),
        (["search.sampler.seeed=3"], ["search.sampler.seeed", "seed"]),
        (["search.storage=sqlite:////nowhere/at/all.db"], ["search.storage", "unable to open"]),
        (["search.storage=nonsense"], ["search.storage"]),
        (["resume=auto"], ["resume=auto", "remove it"]),
        (["-m"], ["--multirun"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_searches(command, overrides, words):
    refused(command(*SEARCH, *overrides, module="vae_lab.search"), *words)


def test_help_names_every_space(command):
    done = command("--help", module="vae_lab.search")
    for file in (ROOT / "conf/search").glob("*.yaml"):
        assert file.stem in done.stdout
    assert "search.num_trials=50" in done.stdout and "  num_trials: 30" in done.stdout


def test_a_space_in_hydras_syntax():
    space = parse_space(
        ["a=int(interval(2,8))", "b=tag(log,interval(1e-3,1))", "c=range(0,1,step=0.25)", "d=choice([1,2],x)", "e=1"],
        ["f=range(9,1,step=-2)", "b=5", "+g=tag(log,range(1,9))"],
    )
    assert space.fixed == ["b=5", "e=1"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    words = [word for _ in range(200) for word in space.sample(study.ask())]
    found = {
        key: {word.split("=")[1] for word in words if word.startswith(f"{key}=")} for key in ("a", "c", "d", "f", "+g")
    }
    assert found["a"] == set("2345678") and found["+g"] == set("12345678")
    assert found["c"] == {"0.0", "0.25", "0.5", "0.75"} and found["d"] == {"[1,2]", "x"} and found["f"] == set("3579")
    assert list(parse_space(["a=choice(1,2)"], ["b=1,2"], is_default=True).dimensions) == ["b"]


@pytest.mark.parametrize(
    ("space", "overrides", "words"),
    [
        (["a=choice(1,2)"], ["a=3"], r"search.space: found a=choice\(1,2\), which leaves no choice"),
        ([], ["a=range(3,3)"], "the range is empty"),
        ([], ["a=tag(log,interval(0,1))"], "low > 0"),
        ([], ["model=glob(*)"], r"expected choice\(a,b\)"),
    ],
)
def test_wrong_spaces(space, overrides, words):
    with pytest.raises(UsageError, match=words):
        parse_space(space, overrides)

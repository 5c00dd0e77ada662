"""How a command ends: a few lines that name the mistake and the nearest right name, and the exit code."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from helpers.toy import write_conf
from omegaconf import DictConfig, OmegaConf

from vae_lab.callbacks import StopOnSignal
from vae_lab.config.messages import MESSAGE_LINES
from vae_lab.config.validation import check_targets
from vae_lab.runs.cli import run_command
from vae_lab.utils.errors import RunFailed, UsageError
from vae_lab.utils.signals import ForcedInterrupt, Interrupted, StopSignals


class Outcome(NamedTuple):
    code: int
    error: str
    configs: list[DictConfig]


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the app in this process: its exit code, what it wrote to stderr, the configs of its jobs."""
    directory = write_conf(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(*argv: str, task: Callable[[DictConfig], object] = OmegaConf.resolve) -> Outcome:
        configs: list[DictConfig] = []

        def job(config: DictConfig) -> object:
            configs.append(config)
            return task(config)

        monkeypatch.setattr(sys, "argv", ["app", *argv])
        code: Any = 0
        try:
            run_command(job, "app", directory)
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, capsys.readouterr().err, configs)

    return run


def test_a_command_that_went_well_says_nothing(run: Run):
    outcome = run("seed=3", "model=conv")
    assert (outcome.code, outcome.error) == (0, "")
    assert (outcome.configs[0].seed, outcome.configs[0].model.latent_dim) == (3, 32)


WRONG = [
    ("modle.latent_dim=3", "modle: there is no such key", "did you mean model?", "callbacks, data"),
    ("model.latent_dimm=3", "model.latent_dimm: there is no such key", "did you mean model.latent_dim?", "encoder"),
    ("trainer.max_epoch=3", "trainer.max_epoch: there is no", "did you mean trainer.max_epochs?", "accelerator"),
    ("+trainer.max_epoch=3", "trainer.max_epoch: there is no", "did you mean trainer.max_epochs?"),
    ("latent_dim=3", "latent_dim: there is no such key", "did you mean model.latent_dim?"),
    ("modle=conv", "modle: there is no such key", "did you mean model?"),
    ("model/encodr=deep", "no such key", "did you mean model/encoder?", "expected one of: model/encoder\n"),
    ("model=cnov", "model=cnov: no such option", "did you mean model=conv?", "expected one of: conv, mlp"),
    ("seed=abc", "seed: Value 'abc' of type 'str' could not be converted to Integer"),
    ("trainer.limit_val_batches=x", "trainer.limit_val_batches: Value 'x' of type 'str'", "Union[int, float]"),
    ("seed=1,2", "seed=1,2", "add --multirun"),
    ("model.latent_dim=[1", "model.latent_dim=[1: syntax error", "expected key=value"),
    ("seed", "seed: syntax error: missing EQUAL", "expected key=value"),
    ("model=unset", "model.latent_dim: has no value", "set model.latent_dim=..."),
    ("data.root=${modle.latent_dim}", "data.root: Interpolation key 'modle.latent_dim' not found"),
    ("experiment=key", "no such key (in experiment/key.yaml)", "did you mean trainer.max_epochs?"),
    ("experiment=type", "seed: Value 'many'", "Integer (in experiment/type.yaml)"),
    ("experiment=option", "model=cnov: no such option", "did you mean model=conv?"),
    ("experiment=group", "In 'experiment/group': Could not override 'modle'", "did you mean model?"),
    ("~seedd", "'seedd' does not exist"),
    ("seed=null", "seed: field 'seed' is not Optional"),
]


def check(config: DictConfig) -> None:
    config.trainer._target_ = "builtins.dict"
    config.objective = config.optimizer = None
    check_targets(config)


@pytest.mark.parametrize(("argument", "expected"), [(case[0], case[1:]) for case in WRONG], ids=lambda value: value[0])
def test_a_wrong_request_is_explained_in_a_few_lines(run: Run, argument: str, expected: list[str]):
    outcome = run(argument, task=check)
    assert outcome.code == 2
    assert outcome.error.startswith("error: ") and "Traceback" not in outcome.error
    assert outcome.error.count("\n") <= MESSAGE_LINES
    assert [text for text in expected if text not in outcome.error] == []


def by_seed(**errors: BaseException) -> Callable[[DictConfig], object]:
    """A task that fails at some seeds."""

    def task(config: DictConfig) -> object:
        if f"seed_{config.seed}" in errors:
            raise errors[f"seed_{config.seed}"]
        return 1.0

    return task


WRAPPED = RuntimeError("while loading")
WRAPPED.__cause__ = UsageError("data.folder: no such folder\nuse data=digits")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (WRAPPED, 2, "error: data.folder: no such folder\n  use data=digits\n"),
        (RunFailed("step 12: the KL is not finite"), 1, "error: step 12: the KL is not finite\n"),
        (AttributeError("a bug"), 1, "Traceback"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_a_job_fails(run: Run, error: BaseException, code: int, text: str):
    outcome = run(task=by_seed(seed_0=error))
    assert outcome.code == code and outcome.error.startswith(text)
    assert ("Traceback" in outcome.error) == (text == "Traceback")


def test_the_user_may_ask_for_the_traceback_and_the_children_of_a_job_see_that(run: Run, monkeypatch):
    seen: list[str | None] = []
    for chosen in ("0", "1"):
        monkeypatch.setenv("HYDRA_FULL_ERROR", chosen)
        outcome = run("seed=abc")
        assert outcome.code == 2 and ("Traceback" in outcome.error) == (chosen == "1")
        assert run(task=lambda _: seen.append(os.environ.get("HYDRA_FULL_ERROR"))).code == 0
        assert seen[-1] == os.environ["HYDRA_FULL_ERROR"] == chosen


def test_in_a_sweep_a_bad_value_fails_its_job_and_the_others_go_on(run: Run):
    outcome = run("-m", "seed=1,2,3,4", task=by_seed(seed_2=RunFailed("lost"), seed_3=UsageError("no three")))
    assert [config.seed for config in outcome.configs] == [1, 2, 3, 4]
    assert outcome.code == 2
    assert "error: job 1 (seed=2): lost\n" in outcome.error
    assert outcome.error.count("error: job 2 (seed=3): no three\n") == 1
    assert "Traceback" not in outcome.error
    assert run("-m", "seed=1,2", task=by_seed(seed_1=RunFailed("lost"))).code == 1
    refused = run("-m", "model=mlp,cnov")  # before the first job
    assert (refused.code, refused.configs) == (2, []) and "did you mean model=conv?" in refused.error


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_job_ends_the_whole_sweep(run: Run, signum: int, code: int):
    outcome = run("-m", "seed=1,2,3", task=by_seed(seed_2=Interrupted(signum)))
    assert outcome.code == code
    assert [config.seed for config in outcome.configs] == [1, 2]
    first, then = outcome.error.splitlines()
    assert first == f"interrupted by {signal.Signals(signum).name}"
    assert then.startswith("to run what is left, add to the same command: sweep.resume=outputs/sweeps/")


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143)]
)
def test_before_anything_can_be_lost_a_signal_ends_the_command_where_it_is(signum, code):
    with pytest.raises(Interrupted) as caught, StopSignals():
        signal.raise_signal(signum)
        time.sleep(60)
    assert caught.value.exit_code == code
    assert not callable(handler := signal.getsignal(signum)) or "StopSignals" not in repr(handler)


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop_signals:
            signal.raise_signal(signal.SIGHUP)
        assert stop_signals.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_lightning_installs_as_the_test_begins_is_replaced():
    """It would end the process with code 0 at the next batch."""
    with StopSignals() as stop_signals:
        stop_signals.defer_to_safe_points()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        StopOnSignal(stop_signals, None).on_test_start(SimpleNamespace(world_size=1), None)
        signal.raise_signal(signal.SIGTERM)
        assert stop_signals.requested == signal.SIGTERM


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(ForcedInterrupt), StopSignals() as stop_signals:
        stop_signals.defer_to_safe_points()
        signal.raise_signal(signal.SIGINT)
        assert stop_signals.requested == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

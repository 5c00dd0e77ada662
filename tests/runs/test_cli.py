"""How a command ends: a few lines that name the mistake and the nearest right name, and the exit code."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vae_lab.config.messages import MESSAGE_LINES
from vae_lab.config.validation import check_targets
from vae_lab.runs.cli import run_command
from vae_lab.utils.errors import RunFailed, UsageError
from vae_lab.utils.signals import ForcedInterrupt, Interrupted, StopSignals, defer_sigint

FILES = {
    "app.yaml": """
        defaults: [schema, trainer: auto, model: mlp, experiment: null, override hydra/job_logging: disabled,
                   override hydra/hydra_logging: disabled, _self_]
        data: {root: data}
        hydra:
          run: {dir: "outputs/${run_name:}/${now:%Y-%m-%d_%H-%M-%S}"}
          sweep: {dir: "outputs/sweeps/${now:%Y-%m-%d_%H-%M-%S}", subdir: "${hydra.job.num}"}
          callbacks: {run_folder: {_target_: vae_lab.runs.run_dir.RunDirectory}}
    """,
    "trainer/auto.yaml": "max_epochs: 3",
    "model/mlp.yaml": "latent_dim: 2\nencoder: {hidden: 400}",
    "model/conv.yaml": "latent_dim: 32\nencoder: {channels: 8}",
    "model/unset.yaml": "latent_dim: ???",
    "model/encoder/deep.yaml": "hidden: 800",
    "experiment/key.yaml": "# @package _global_\ntrainer: {max_epoch: 3}",
    "experiment/type.yaml": "# @package _global_\nseed: many",
    "experiment/option.yaml": "# @package _global_\ndefaults: [override /model: cnov]",
    "experiment/group.yaml": "# @package _global_\ndefaults: [override /modle: conv]",
}


class Outcome(NamedTuple):
    code: int
    error: str
    configs: list[DictConfig]


Run = Callable[..., Outcome]


def write_conf(folder: Path) -> None:
    for name, text in FILES.items():
        file = folder / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the app in this process: its exit code, what it wrote to stderr, the configs of its jobs."""
    write_conf(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*argv: str, task: Callable[[DictConfig], object] = OmegaConf.resolve) -> Outcome:
        configs: list[DictConfig] = []

        def job(config: DictConfig) -> object:
            configs.append(config)
            return task(config)

        monkeypatch.setattr(sys, "argv", ["app", *argv])
        code: Any = 0
        try:
            run_command(job, "app", str(tmp_path / "conf"))
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, capsys.readouterr().err, configs)

    return run


def test_a_command_that_went_well_says_nothing(run: Run):
    outcome = run("seed=3", "model=conv")
    assert (outcome.code, outcome.error) == (0, "")
    assert (outcome.configs[0].seed, outcome.configs[0].model.latent_dim) == (3, 32)


WRONG = [
    (
        ["modle.latent_dim=3"],
        ["modle.latent_dim=3: there is no 'modle'", "did you mean model?", "callbacks, data"],
    ),
    (
        ["model.latent_dimm=3"],
        ["no 'latent_dimm' in model", "did you mean model.latent_dim?", "latent_dim, encoder"],
    ),
    (["model.encoder.hiden=3"], ["no 'hiden' in model.encoder", "did you mean model.encoder.hidden?"]),
    (
        ["trainer.max_epoch=3"],
        ["no 'max_epoch' in trainer", "did you mean trainer.max_epochs?", "accelerator"],
    ),
    (["latent_dim=3"], ["no 'latent_dim' at the root", "did you mean model.latent_dim?"]),
    (["modle=conv"], ["modle=conv: there is no 'modle'", "did you mean model?"]),
    (
        ["model/encodr=deep"],
        ["there is no 'model/encodr'", "did you mean model/encoder?", "expected one of: model/encoder\n"],
    ),
    (
        ["model=cnov"],
        ["model=cnov: no such option", "did you mean model=conv?", "expected one of: conv, mlp"],
    ),
    (["experiment=typ"], ["experiment=typ: no such option", "did you mean experiment=type?"]),
    (["seed=abc"], ["seed: Value 'abc' of type 'str' could not be converted to Integer"]),
    (["trainer.max_epochs=many"], ["trainer.max_epochs: Value 'many'", "Integer"]),
    (
        ["trainer.limit_val_batches=x"],
        ["trainer.limit_val_batches: Value 'x' of type 'str'", "Union[int, float]"],
    ),
    (["trainer.detect_anomaly=maybe"], ["trainer.detect_anomaly", "'maybe' is not a valid bool"]),
    (["seed=1,2"], ["seed=1,2", "add --multirun"]),
    (["model.latent_dim=[1"], ["model.latent_dim=[1: syntax error", "expected key=value"]),
    (["seed"], ["seed: syntax error: missing EQUAL", "expected key=value"]),
    (["a b=1"], ["a b=1: syntax error", "expected key=value"]),
    (["model=unset"], ["model.latent_dim: has no value", "set model.latent_dim=..."]),
    (
        ["data.root=${modle.latent_dim}"],
        ["data.root: Interpolation key", "did you mean ${model.latent_dim}?"],
    ),
    (["data.root=${nothing:3}"], ["data.root: Unsupported interpolation type nothing"]),
    (
        ["experiment=key"],
        ["no 'max_epoch' in trainer (in experiment/key.yaml)", "did you mean trainer.max_epochs?"],
    ),
    (["experiment=type"], ["seed: Value 'many'", "Integer (in experiment/type.yaml)"]),
    (["experiment=option"], ["model=cnov: no such option", "did you mean model=conv?"]),
    (["experiment=group"], ["In 'experiment/group': Could not override 'modle'", "did you mean model?"]),
    (["model@other=conv"], ["Could not override 'model@other'"]),
    (["~seedd"], ["'seedd' does not exist"]),
    (["seed=null"], ["seed: field 'seed' is not Optional"]),
    (
        ["+trainer.max_epoch=3"],
        ["trainer.max_epoch: there is no such key", "did you mean trainer.max_epochs?"],
    ),
]


@pytest.mark.parametrize(("argv", "expected"), WRONG, ids=lambda value: value[0].partition(":")[0])
def test_a_wrong_request_is_explained_in_a_few_lines(run: Run, argv: list[str], expected: list[str]):
    outcome = run(*argv, task=lambda config: check_targets(complete(config)))
    assert outcome.code == 2
    assert outcome.error.startswith("error: ")
    assert outcome.error.count("\n") <= MESSAGE_LINES
    assert "Traceback" not in outcome.error
    for text in expected:
        assert text in outcome.error


def complete(config: DictConfig) -> DictConfig:
    config.trainer._target_ = "builtins.dict"
    config.objective = config.optimizer = None
    return config


def build(value: object) -> None:
    if value is None:
        raise UsageError("value: nothing given\ngive a number")
    if value == 0:
        raise ValueError("value must be positive, got 0")
    raise RuntimeError("a bug")


def fail(error: BaseException) -> Callable[[DictConfig], object]:
    def task(_: DictConfig) -> object:
        raise error

    return task


WRAPPED = RuntimeError("while loading")
WRAPPED.__cause__ = UsageError("data.folder: no such folder\nuse data=digits")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (WRAPPED, 2, "error: data.folder: no such folder\n  use data=digits\n"),
        (RunFailed("step 12: the KL is not finite"), 1, "error: step 12: the KL is not finite\n"),
        (KeyError("a bug"), 1, "Traceback"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_a_job_fails(run: Run, error: BaseException, code: int, text: str):
    outcome = run(task=fail(error))
    assert outcome.code == code and outcome.error.startswith(text)
    assert ("Traceback" in outcome.error) == (text == "Traceback")


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        (0, 2, "error: node: value must be positive, got 0\n"),
        (None, 2, "error: value: nothing given\n  give a number\n"),
        (1, 1, "a bug"),
    ],
)
def test_what_a_constructor_refuses_is_a_wrong_request(run: Run, value: object, code: int, text: str):
    node = OmegaConf.create({"node": {"_target_": f"{__name__}.build", "value": value}}).node
    outcome = run(task=lambda _: instantiate(node))
    assert outcome.code == code
    assert text in outcome.error
    assert ("Traceback" in outcome.error) == (code == 1)


def test_a_missing_attribute_in_the_code_is_a_bug_not_a_wrong_request(run: Run):
    outcome = run(task=lambda config: config.modle)
    assert outcome.code == 1
    assert "Traceback" in outcome.error


def test_hydra_full_error_shows_the_traceback_of_a_wrong_request(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = run("seed=abc")
    assert outcome.code == 2
    assert "Traceback" in outcome.error


@pytest.mark.parametrize("chosen", [None, "1"])
def test_a_job_and_its_children_see_the_environment_of_the_user(
    run: Run, monkeypatch: pytest.MonkeyPatch, chosen: str | None
):
    if chosen is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", chosen)
    seen: list[str | None] = []
    assert run(task=lambda _: seen.append(os.environ.get("HYDRA_FULL_ERROR"))).code == 0
    assert seen == [chosen]
    assert os.environ.get("HYDRA_FULL_ERROR") == chosen


def by_seed(**errors: BaseException) -> Callable[[DictConfig], object]:
    def task(config: DictConfig) -> object:
        error = errors.get(f"seed_{config.seed}")
        if error is not None:
            raise error
        return 1.0

    return task


def test_in_a_sweep_a_bad_value_fails_its_job_and_the_others_go_on(run: Run):
    outcome = run("-m", "seed=1,2,3,4", task=by_seed(seed_2=RunFailed("lost"), seed_3=UsageError("no three")))
    assert [config.seed for config in outcome.configs] == [1, 2, 3, 4]
    assert outcome.code == 2
    assert "error: job 1 (seed=2): lost\n" in outcome.error
    assert "error: job 2 (seed=3): no three\n" in outcome.error
    assert outcome.error.count("no three") == 1
    assert "Traceback" not in outcome.error


def test_a_sweep_without_a_wrong_request_ends_with_1(run: Run):
    assert run("-m", "seed=1,2", task=by_seed(seed_1=RunFailed("lost"))).code == 1


def test_a_sweep_that_cannot_be_composed_is_refused_before_its_first_job(run: Run):
    outcome = run("-m", "model=mlp,cnov")
    assert (outcome.code, outcome.configs) == (2, [])
    assert "did you mean model=conv?" in outcome.error


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_job_ends_the_whole_sweep(run: Run, signum: int, code: int):
    outcome = run("-m", "seed=1,2,3", task=by_seed(seed_2=Interrupted(signum)))
    assert outcome.code == code
    assert [config.seed for config in outcome.configs] == [1, 2]
    assert outcome.error == f"interrupted by {signal.Signals(signum).name}\n"


def test_a_signal_only_sets_the_flag_and_the_old_handlers_come_back():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as stop_signals:
        stop_signals.defer_to_safe_points()
        stop_signals.raise_if_requested()
        assert stop_signals.requested is None
        signal.raise_signal(signal.SIGTERM)
        assert stop_signals.requested == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            stop_signals.raise_if_requested()
        assert caught.value.exit_code == 143
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_before_anything_can_be_lost_a_signal_ends_the_command_where_it_is(signum, code):
    with pytest.raises(Interrupted) as caught, StopSignals():
        signal.raise_signal(signum)
        time.sleep(60)
    assert caught.value.exit_code == code
    assert not callable(handler := signal.getsignal(signum)) or "StopSignals" not in repr(handler)


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(ForcedInterrupt), StopSignals() as stop_signals:
        stop_signals.defer_to_safe_points()
        signal.raise_signal(signal.SIGINT)
        assert stop_signals.requested == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_ctrl_c_while_a_file_is_written_comes_after_it():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with defer_sigint():
            signal.raise_signal(signal.SIGINT)
            done.append("written")
        done.append("never")
    assert done == ["written"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_entered_in_another_thread_signals_stay_as_they_were():
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def enter() -> None:
        with StopSignals() as stop_signals:
            seen.extend([signal.getsignal(signal.SIGINT), stop_signals.requested])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, None]


def test_a_real_ctrl_c_ends_a_real_command_with_130(tmp_path: Path):
    write_conf(tmp_path)
    program = tmp_path / "program.py"
    program.write_text(
        dedent(
            """
            import time
            from pathlib import Path
            from vae_lab.runs.cli import run_command
            from vae_lab.utils.signals import StopSignals

            def task(config):
                with StopSignals() as stop_signals:
                    stop_signals.defer_to_safe_points()
                    print("ready", flush=True)
                    for _ in range(1000):
                        stop_signals.raise_if_requested()
                        time.sleep(0.01)

            run_command(task, "app", str(Path(__file__).parent / "conf"))
            """
        )
    )
    source = str(Path(__file__).parents[2])
    command = subprocess.Popen(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    command.send_signal(signal.SIGINT)
    _, error = command.communicate(timeout=20)
    first, last = error.strip().splitlines()
    assert command.returncode == 130 and last == "interrupted by SIGINT"
    assert first == "stopping as soon as everything is saved; Ctrl-C again stops at once"

"""Run directories: fresh for each run, kept by a resumed one, never overwritten; what identifies a run."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from helpers.toy import write_conf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vae_lab.runs import provenance
from vae_lab.runs.cli import run_command
from vae_lab.runs.provenance import config_hash, git_state
from vae_lab.runs.run_dir import claim, create
from vae_lab.runs.stored_config import load_config, resumed_config
from vae_lab.utils.errors import UsageError

Launch = Callable[..., Path]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_conf(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path


@pytest.fixture
def launch(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Run the app in this process; the folder of its last job, with a checkpoint in it."""

    def launch(*argv: str, task: Callable[[DictConfig], object] = lambda config: None) -> Path:
        folders: list[Path] = []

        def job(config: DictConfig) -> None:
            folders.append(Path(HydraConfig.get().runtime.output_dir))
            (folders[-1] / "checkpoints").mkdir(exist_ok=True)
            (folders[-1] / "checkpoints" / "last.ckpt").touch()
            task(config)

        monkeypatch.setattr(sys, "argv", ["app", *argv])
        run_command(job, "app", str(workplace / "conf"))
        return folders[-1]

    return launch


def take_overrides(config: DictConfig) -> None:
    resumed_config(config, HydraConfig.get().overrides.task)


@pytest.fixture
def refused(launch: Launch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the app where it must refuse with exit code 2; its message."""

    def refused(*argv: str, **options: Callable) -> str:
        with pytest.raises(SystemExit) as stop:
            launch(*argv, **options)
        assert stop.value.code == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert "Traceback" not in text
        return text

    return refused


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_is_named_by_name_or_experiment_or_model_and_data(launch: Launch, workplace: Path):
    for argv, name in (
        ([], "mlp-digits"),
        (["experiment=paper"], "paper"),
        (["experiment=paper", "name=mine"], "mine"),
        (["name='../../x'"], "_.._x"),  # never outside outputs/
    ):
        folder = launch(*argv)
        assert folder.parent == workplace / "outputs" / name
        assert datetime.now() - datetime.strptime(folder.name[:19], "%Y-%m-%d_%H-%M-%S") < timedelta(minutes=1)


def test_runs_of_the_same_second_never_share_a_folder(workplace: Path):
    folder = workplace / "outputs" / "same"
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda _: create(folder), range(64)))
    assert {path.name for path in created} == {"same", *(f"same_{number}" for number in range(2, 65))}
    assert len(set(created)) == 64

    def take(_: int) -> bool:
        try:
            return bool(claim(workplace / "mine"))
        except (UsageError, FileExistsError):
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(take, range(64))) == 1


def test_a_sweep_has_one_folder_of_numbered_jobs(launch: Launch, refused: Callable[..., str], workplace: Path):
    last = launch("-m", "model=mlp,conv", "seed=1,2")
    (sweep,) = (workplace / "outputs" / "sweeps").iterdir()
    assert last == sweep / "3"
    assert {load_config(sweep / str(job)).seed for job in range(4)} == {1, 2}
    assert f"{sweep}: already holds a run" in refused("-m", "seed=3,4", f"hydra.sweep.dir={sweep}")


def test_showing_the_config_makes_no_folder(launch: Launch, workplace: Path, capsys):
    with pytest.raises(IndexError):  # no job, no folder
        launch("--cfg", "hydra", "--package", "hydra.run", "--resolve")
    assert "outputs/mlp-digits/" in capsys.readouterr().out
    assert not (workplace / "outputs").exists()


@pytest.mark.parametrize("holds", [".hydra/config.yaml", "summary.json"])
def test_a_folder_that_holds_a_run_is_not_overwritten(refused: Callable[..., str], workplace: Path, holds: str):
    (workplace / "run" / holds).parent.mkdir(parents=True)
    (workplace / "run" / holds).write_text("precious")
    text = refused("hydra.run.dir=run")
    assert "run: already holds a run" in text
    assert contents(workplace / "run") == {holds: b"precious"}


def resumed(launch: Launch, run: Path, *argv: str) -> DictConfig:
    """The config that a command resumes a run with."""
    seen: list[DictConfig] = []

    def job(config: DictConfig) -> None:
        seen.append(resumed_config(config, HydraConfig.get().overrides.task))

    assert launch(f"resume={run}", *argv, task=job) == run
    return seen[0]


def test_a_resumed_run_keeps_its_folder_and_config_and_takes_the_training_asked_for(launch: Launch):
    run = launch("experiment=paper", "data.batch_size=4", "model.latent_dim=5")
    before = contents(run)
    config = resumed(launch, run, "trainer.max_epochs=9", "trainer=cpu", "hydra.verbose=false")
    assert contents(run) == before
    assert (config.seed, config.model.latent_dim, config.data.batch_size) == (7, 5, 4)
    assert (config.trainer.max_epochs, config.trainer.accelerator) == (9, "cpu")
    assert config.trainer.precision == "bf16-mixed"  # which this cpu.yaml does not set
    assert config.resume == str(run)
    assert config_hash(resumed(launch, run, "trainer.max_epochs=90")) == config_hash(load_config(run))


def test_choices_of_logger_and_callbacks_replace_the_stored_ones(launch: Launch):
    run = launch()
    config = resumed(launch, run, "logger=csv", "logger.csv.every=2", "callbacks=none")
    assert config.logger == {"csv": {"every": 2}} and config.callbacks == {}
    config = resumed(launch, run, "logger=null", "~callbacks.stop", "+callbacks.more={every: 7}")
    assert config.logger is None and config.callbacks == {"images": {"every": 1}, "more": {"every": 7}}


@pytest.mark.parametrize("override", ["callbacks.stop.patience=5", "~callbacks.stop"])
def test_an_override_of_what_the_run_does_not_have_is_refused(
    launch: Launch, refused: Callable[..., str], override: str
):
    run = launch("callbacks=none")
    assert "the run has no callbacks.stop" in refused(f"resume={run}", override, task=take_overrides)


@pytest.mark.parametrize(
    "override", ["seed=2", "model=conv", "model.latent_dim=3", "data.batch_size=3", "+experiment=paper", "init_from=x"]
)
def test_a_resumed_run_refuses_to_become_another_experiment(launch: Launch, refused: Callable[..., str], override: str):
    message = refused(f"resume={launch()}", override.lstrip("+"), task=take_overrides)
    assert f"{override.lstrip('+')}: a resumed run keeps its own" in message
    assert "trainer, logger, callbacks" in message


@pytest.mark.parametrize("argument", ["hydra.run.dir=file/inside", "hydra.run.dir=file"])
def test_a_folder_that_cannot_be_written_is_refused(refused: Callable[..., str], workplace: Path, argument: str):
    (workplace / "file").write_text("in the way")
    (workplace / "outputs").write_text("in the way")
    assert "cannot write the run directory outputs" in refused()
    assert f"cannot write the run directory {argument.partition('=')[2]}" in refused(argument)


def test_what_is_no_run_is_not_resumed(refused: Callable[..., str], workplace: Path):
    (workplace / "empty").mkdir()
    (workplace / "no_checkpoint" / ".hydra").mkdir(parents=True)
    (workplace / "no_checkpoint" / ".hydra" / "config.yaml").write_text("seed: 1")
    before = sorted(workplace.rglob("*"))
    assert "resume=nowhere: no such folder" in refused("resume=nowhere")
    assert "resume=empty: no .hydra/config.yaml in it" in refused("resume=empty")
    assert "resume=no_checkpoint: no checkpoints/last.ckpt in it" in refused("resume=no_checkpoint")
    assert sorted(workplace.rglob("*")) == before


def test_a_sweep_and_another_folder_do_not_go_with_resume(launch: Launch, refused: Callable[..., str]):
    run = launch()
    assert "remove --multirun" in refused("-m", f"resume={run}", "trainer.max_epochs=4,5")
    assert "keeps its own directory" in refused(f"resume={run}", "hydra.run.dir=other")


@pytest.mark.parametrize("trusted", [False, True])
def test_a_run_of_the_version_before_is_refused_in_one_sentence(tmp_path: Path, trusted: bool):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("trainer: {_target_: vae_lab.trainer.build_trainer}\n")
    with pytest.raises(UsageError, match=r"a run of vae_lab 0\.1, which version 0\.2 cannot read"):
        load_config(tmp_path, trusted)


def test_load_config_is_typed_and_says_what_is_wrong(launch: Launch, workplace: Path):
    with pytest.raises(UsageError, match="Not a run directory: nowhere does not exist"):
        load_config("nowhere")
    run = launch()
    config = load_config(run)
    with pytest.raises(ValueError, match="could not be converted"):
        config.trainer.max_epochs = "many"
    with (run / ".hydra" / "config.yaml").open("a") as file:
        file.write("\nfrom_the_future: 1\n")
    with pytest.raises(UsageError, match=r"from_the_future(.|\n)*another version"):
        load_config(run)


def test_the_same_experiment_has_the_same_hash(launch: Launch):
    first = config_hash(load_config(launch()))
    same = ["seed=9", "name=x", "trainer.max_epochs=50", "trainer.max_time='00:01:00:00'", "data.root=/elsewhere"]
    assert config_hash(load_config(launch(*same))) == first
    others = [launch("model.latent_dim=3"), launch("trainer.precision=32-true"), launch("experiment=paper")]
    assert len({first, *(config_hash(load_config(run)) for run in others)}) == 4
    assert len(first) == 64


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *command], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_git_state_is_the_commit_and_whether_the_code_was_changed(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    checkout = workplace / "checkout"
    (checkout / "vae_lab").mkdir(parents=True)
    module = checkout / "vae_lab" / "runs" / "provenance.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert git_state() is None
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    (checkout / "notes.txt").write_text("not code")
    assert git_state() == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (checkout / "vae_lab" / "new.py").write_text("")
    assert git_state() == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state() is None

"""Sweeps: every launcher, jobs that fail, and what sweep.resume runs again."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from helpers.commands import QUIET
from helpers.data import write_pictures
from helpers.toy import write_conf
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from vae_lab.config.schema import conf_dir
from vae_lab.runs import resources
from vae_lab.runs.cli import compose_config, run_command
from vae_lab.runs.run_dir import RunDirectory, register_with_hydra
from vae_lab.utils.errors import UsageError

JOBS = ("-m", *QUIET, "trainer.max_epochs=1", "model.latent_dim=2,0,3,4")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def status(sweep: Path) -> list[str]:
    return [json.loads((sweep / str(job) / "summary.json").read_text())["status"] for job in range(4)]


def test_a_sweep_is_resumed_where_jobs_are_missing_failed_or_interrupted(command):
    done = command(*JOBS, "hydra.sweep.dir=sw")
    sweep = done.cwd / "sw"
    assert done.code == 2 and status(sweep) == ["completed", "failed", "completed", "completed"]
    first, job, then = done.stderr.splitlines()[-3:]
    assert first == "1 job failed:" and then.endswith("add to the same command: sweep.resume=sw")
    assert job.startswith("  job 1 (") and "model.latent_dim=0): model.latent_dim: at least 1 latent dim" in job

    finished, interrupted = files(sweep / "0"), files(sweep / "3")
    shutil.rmtree(sweep / "2")
    summary = json.loads((sweep / "3/summary.json").read_text())
    (sweep / "3/summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    again = command(*JOBS, "trusted=true", "sweep.resume=sw")  # as parts of the user's own would need
    assert again.code == 2 and status(sweep) == ["completed", "failed", "completed", "completed"]
    assert files(sweep / "0") == finished
    assert "resumed at step 3" in (sweep / "3/train.log").read_text()
    unchanged = (".hydra/config.yaml", ".hydra/hydra.yaml", "metrics.csv")
    assert all((sweep / "3" / name).read_bytes() == interrupted[sweep / "3" / name] for name in unchanged)
    assert "model.latent_dim=3" in (sweep / "2/.hydra/overrides.yaml").read_text()
    assert "latent_dim: 3" in (sweep / "2/.hydra/config.yaml").read_text()
    assert (sweep / "2/metrics.csv").read_bytes() != (sweep / "0/metrics.csv").read_bytes()

    for argv, texts in (
        ((*JOBS[:-1], "model.latent_dim=2,3", "sweep.resume=sw"), ("has other overrides", "model.latent_dim=2,0,3,4")),
        ((*JOBS, "sweep.resume=other"), ("sweep.resume=other: no such folder",)),
        ((*QUIET, "sweep.resume=sw"), ("add --multirun",)),
    ):
        refused = command(*argv)
        assert refused.code == 2 and all(text in refused.stderr for text in texts), refused.stderr


def test_jobs_store_where_their_data_are_and_find_them_where_they_have_moved(command):
    """As a single run does; the variable that named them may be gone, or name another folder."""
    write_pictures(command.cwd / "here/pokemon", size=16)
    jobs = ("-m", *QUIET, "data=pokemon", "data.image_size=16", "second_stage=null", "trainer.max_epochs=1", "seed=1")
    done = command(*jobs, "hydra.sweep.dir=sw", VAE_LAB_DATA="here")
    assert done.code == 0, done.stderr
    run = command.cwd / "sw/0"
    assert OmegaConf.load(run / ".hydra/config.yaml").data.root == str(command.cwd / "here")
    (command.cwd / "here").rename(command.cwd / "there")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    again = command(*jobs, "sweep.resume=sw", VAE_LAB_DATA="there")
    assert again.code == 0, again.stderr
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"


def test_the_folder_of_a_resumed_sweep_is_known_where_no_job_runs(tmp_path, monkeypatch):
    """As in the process that starts jobs in parallel, and reports those that failed."""
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: [seed=1]}}")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    register_with_hydra()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", ["seed=1", f"sweep.resume={tmp_path}"], return_hydra_config=True)
    RunDirectory().on_multirun_start(config)
    assert HydraConfig.get().sweep.dir == str(tmp_path)


@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [
        ("joblib", "joblib"),
        pytest.param("submitit_local", "submitit", marks=pytest.mark.slow),
        pytest.param("ray", "ray", marks=pytest.mark.slow),
    ],
    ids=lambda name: name,
)
def test_every_launcher_runs_all_jobs_and_reports_the_failed_one(tmp_path, monkeypatch, capfd, launcher, plugin):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    directory = write_conf(tmp_path)
    shutil.copytree(Path(conf_dir(), "hydra"), Path(directory, "hydra"))

    def task(config):
        assert os.environ.setdefault("LEFT_BY", str(config.seed)) == str(config.seed)  # by a job before in this process
        file = Path(HydraConfig.get().runtime.output_dir, "seen.txt")
        file.write_text(f"{config.seed} {os.getcwd()}")  # noqa: PTH109
        if config.seed == 2:
            raise UsageError("seed: no two")

    monkeypatch.setattr(sys, "argv", ["app", "-m", f"hydra/launcher={launcher}", "seed=1,2,3", "hydra.sweep.dir=sw"])
    with pytest.raises(SystemExit) as stop:
        run_command(task, "app", directory)
    if launcher == "ray":
        sys.modules["ray"].shutdown()
    assert stop.value.code == 2
    assert "1 job failed:\n  job 1 (seed=2): seed: no two\n" in capfd.readouterr().err
    seen = [(tmp_path / "sw" / str(job) / "seen.txt").read_text() for job in range(3)]
    assert seen == [f"{seed} {tmp_path}" for seed in (1, 2, 3)]


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("joblib", "joblib"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm"), ("ray", "ray")],
)
def test_a_missing_plugin_names_its_extra(monkeypatch, launcher, extra):
    Plugins.instance()  # registers those that are installed
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{launcher}.yaml", raising=False)
    with pytest.raises(UsageError, match=rf"(?s)hydra/launcher={launcher}: .*pip install 'vae_lab\[{extra}\]'"):
        compose_config("train", [f"hydra/launcher={launcher}"])


def test_each_job_gets_one_gpu_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(resources.cpu, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for visible, jobs, threads, gpus, given in (("", 8, 1, 0, ["", ""]), ("2,5", 2, 4, 1, ["2", "5", "2"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert (resources.jobs_at_once(), resources.threads_per_job(), resources.gpus_per_job()) == (
            jobs,
            threads,
            gpus,
        )
        assert [resources.gpu_of_job(number) for number in range(len(given))] == given

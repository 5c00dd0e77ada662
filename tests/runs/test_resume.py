"""Which run `resume` means, one process to a run, and `resume=auto` as a scheduler uses it."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers.commands import QUIET, wait_for
from helpers.refusals import refused
from omegaconf import OmegaConf

from vae_lab.runs.resume import (
    exclusive_lock,
    is_unfinished,
    newest_unfinished,
    require_resumable,
    resume_checkpoint,
    run_dir_of,
)
from vae_lab.utils.errors import UsageError

CONFIG = {"seed": 1, "name": "a", "resume": None, "trusted": False, "model": {"latent_dim": 2, "hidden": "${seed}"}}


def write_run(folder, config=CONFIG, status="interrupted", checkpoint=True):
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), folder / ".hydra" / "config.yaml")
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()
    if status:
        (folder / "summary.json").write_text(json.dumps({"status": status}))
    return folder


def test_a_run_or_one_of_its_checkpoints_may_be_named(tmp_path):
    run = write_run(tmp_path / "run")
    assert run_dir_of(run) == run_dir_of(run / "checkpoints" / "best.ckpt") == run
    assert resume_checkpoint(run) == run / "checkpoints" / "last.ckpt"
    assert resume_checkpoint(run / "checkpoints" / "best.ckpt").name == "best.ckpt"
    assert require_resumable(run) == run
    with pytest.raises(UsageError, match=r"no checkpoints/best\.ckpt in it"):
        require_resumable(run / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize(
    ("status", "checkpoint", "config", "unfinished"),
    [
        ("interrupted", True, CONFIG, True),
        ("failed", True, CONFIG, True),
        (None, True, CONFIG, True),  # killed
        ("completed", True, CONFIG, False),
        ("interrupted", False, CONFIG, False),
        ("interrupted", True, CONFIG | {"name": "b", "resume": "auto", "trusted": True}, True),
        ("interrupted", True, CONFIG | {"seed": 2}, False),
        ("interrupted", True, CONFIG | {"model": {"latent_dim": 2, "hidden": 1}}, False),
        ("interrupted", True, [1], False),
    ],
)
def test_unfinished_means_stopped_saved_and_of_the_same_config(tmp_path, status, checkpoint, config, unfinished):
    run = write_run(tmp_path / "run", config, status, checkpoint)
    assert is_unfinished(run, OmegaConf.create(CONFIG | {"hydra": {"x": 1}})) is unfinished


def test_the_newest_counts_by_its_name(tmp_path):
    assert newest_unfinished(tmp_path / "none", OmegaConf.create(CONFIG)) is None
    for name in ("2026-01-01_10-00-00_2", "2026-01-01_10-00-00_10", "2026-01-01_09-00-00", "2026-01-01_10-00-00"):
        write_run(tmp_path / name)
    write_run(tmp_path / "2026-01-02_10-00-00", status="completed")
    config = OmegaConf.create(CONFIG)
    assert newest_unfinished(tmp_path, config).name == "2026-01-01_10-00-00_10"
    with exclusive_lock(tmp_path / "2026-01-01_10-00-00_10"):
        assert newest_unfinished(tmp_path, config).name == "2026-01-01_10-00-00_2"


def test_a_run_has_one_process_and_is_free_when_that_is_killed(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from vae_lab.runs.resume import exclusive_lock
        with exclusive_lock(Path(sys.argv[1])):
            print("at it", flush=True)
            time.sleep(60)
    """)
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"at it\n"
    with (
        pytest.raises(UsageError, match=r"another process is training this run"),
        exclusive_lock(tmp_path, seconds=0.0),
    ):
        pass
    other.kill()
    other.wait()
    for _ in range(2):  # left behind by nobody
        with exclusive_lock(tmp_path):
            pass


# --- the command ------------------------------------------------------------------------------------------

SHORT = (*QUIET, "callbacks.last.every_n_seconds=0.0")
LONG = (*SHORT, "trainer.max_epochs=4000")


def stopped(command, sign=signal.SIGUSR1):
    started = command.start(*LONG, "resume=auto")
    wait_for(lambda: "val elbo" in started.output())
    os.kill(started.pid, sign)
    return started.wait()


def runs(command):
    return sorted(path for path in command.cwd.glob("outputs/*/*") if path.is_dir())


def test_auto_starts_goes_on_and_starts_anew_after_the_end(command):
    first = stopped(command)
    assert first.code == 143, first.stderr[-2000:]
    (run,) = runs(command)
    at = first.summary["steps"]
    again = stopped(command, signal.SIGTERM)
    assert again.code == 143 and runs(command) == [run]
    assert again.summary["steps"] >= at
    other = command(*SHORT, "resume=auto")  # another length of training is another config
    assert other.code == 0, other.stderr
    assert len(runs(command)) == 2
    anew = command(*SHORT, "resume=auto")  # that one is completed
    assert anew.code == 0, anew.stderr
    assert len(runs(command)) == 3


def test_a_run_goes_on_from_its_best_checkpoint(command):
    done = command(*SHORT, "trainer.max_epochs=3")
    resume = (f"resume={done.run}", "trainer.max_epochs=5")
    with exclusive_lock(done.run):
        before = {path: path.read_bytes() for path in done.run.rglob("*") if path.is_file()}
        refused(command(*resume), "another process is training this run")
        assert {path: path.read_bytes() for path in done.run.rglob("*") if path.is_file()} == before
    torch.save({"weights": torch.zeros(3)}, done.run / "checkpoints" / "last.ckpt")
    refused(command(*resume), "holds no global_step")
    (done.run / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    refused(command(*resume), "resume=RUN/checkpoints/best.ckpt")
    again = command(f"resume={done.run}/checkpoints/best.ckpt", "trainer.max_epochs=5")
    assert again.code == 0, again.stderr
    assert again.run == done.run and again.summary["epochs"] == 5
    rows = (done.run / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4", "5"]

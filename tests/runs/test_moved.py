"""A run goes on from any folder, with data that moved, from any name that a file system takes, and from Python."""

import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.commands import QUIET
from helpers.data import write_pictures
from helpers.refusals import refused
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import vae_lab
from vae_lab.config.schema import conf_dir
from vae_lab.runs.run_dir import find_data
from vae_lab.runs.stored_config import load_config
from vae_lab.utils.errors import UsageError

ODD = "it's a [b](c)=d,e#f~ä漢 {x} $y"
FOLDER = ("data=folder", "data.image_size=16", "second_stage=null", *QUIET)


def test_names_that_a_shell_or_hydra_would_read_otherwise(command, tmp_path):
    here = tmp_path / ODD
    write_pictures(here / "data, 1=[2]", size=16)
    done = command(*FOLDER, "data.folder=data, 1=[2]", "trainer.max_epochs=1", cwd=here)
    assert done.code == 0, done.stderr
    (run,) = here.glob("outputs/*/*")
    from_elsewhere = command(f"resume={run}", "trainer.max_epochs=2")  # its folder was relative to `here`
    assert from_elsewhere.code == 0, from_elsewhere.stderr
    (here / "data, 1=[2]").rename(tmp_path / "~moved")
    refused(command(f"resume={run}", "trainer.max_epochs=3"), "data.folder=")
    moved = command(f"resume={run}", "trainer.max_epochs=3", f"data.folder={tmp_path}/~moved")
    assert moved.code == 0, moved.stderr
    (tmp_path / "~moved/000.png").write_bytes((tmp_path / "~moved/001.png").read_bytes())
    again = (f"resume={run}", "trainer.max_epochs=4", f"data.folder={tmp_path}/~moved")
    refused(command(*again), "not those that the run was trained on", "data.changed=accept")
    accepted = command(*again, "data.changed=accept")
    assert accepted.code == 0, accepted.stderr
    assert "data.folder=" in (run / "train.log").read_text()
    fitted = command(str(run), f"data.folder={tmp_path}/~moved", "second_stage=gaussian", module="vae_lab.fit_prior")
    assert fitted.code == 0, fitted.stderr
    refused(command(f"resume={run}", "trainer.max_epochs=5", "data.file=x"), "reads no file")
    lab = vae_lab.load(run / "checkpoints/last.ckpt", prior="trained")
    assert lab.sample(2).shape == (2, 3, 16, 16)


def test_the_data_are_found_without_the_variable_that_named_them(monkeypatch):
    config = OmegaConf.create({"data": {"root": "${oc.env:VAE_LAB_DATA,data}", "folder": "${data.root}/pokemon"}})
    monkeypatch.setenv("VAE_LAB_DATA", "sets")
    find_data(config)
    assert OmegaConf.to_container(config)["data"] == {
        "root": str(Path("sets").absolute()),
        "folder": "${data.root}/pokemon",
    }


def test_the_printed_command_and_a_smaller_rate_are_the_way_on(command):
    failed = command(*QUIET, "optimizer.lr=1e30", "trainer.limit_train_batches=20", "name=bad")
    assert failed.code == 1 and "resume=RUN optimizer.lr=1e+29, or trainer.on_nonfinite=skip" in failed.stderr
    assert "32-true" not in failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("to resume: ")]
    _, _, _, *words = shlex.split(line.removeprefix("to resume: "))
    again = command(*words, "optimizer.lr=1e-4", "trainer.on_nonfinite=skip")
    assert again.code == 0, again.stderr
    assert "resumed at step 1" in (log := (failed.run / "train.log").read_text()) and "optimizer.lr=1e-4" in log


def test_an_option_of_another_version_is_a_warning_where_only_weights_are_used(fast_run, tmp_path, logged_warnings):
    text = (fast_run.run / ".hydra/config.yaml").read_text()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").write_text(text.replace("trainer:", "future: 1\ntrainer:\n  warp: 9", 1))
    (tmp_path / "checkpoints").symlink_to(fast_run.run / "checkpoints")
    assert vae_lab.load(tmp_path).sample(1).shape == (1, 1, 28, 28)
    assert ["future" in line or "warp" in line for line in logged_warnings] == [True, True]
    with pytest.raises(UsageError, match="future"):
        load_config(tmp_path)


def test_training_from_python(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    lab = vae_lab.fit(*QUIET, "model.latent_dim=3", "trainer.max_epochs=1", "hydra.run.dir=a run")
    assert lab.encode(torch.zeros(2, 1, 28, 28)).mean.shape == (2, 3)
    assert (tmp_path / "a run/summary.json").is_file()
    for wrong, words in (
        ("modle=conv", "did you mean model"),
        ("model.latent_dim=0", "at least 1"),
        ("-m", "overrides"),
        ("hydra.run.dir=a run", "already holds a run"),
    ):
        with pytest.raises(UsageError, match=words):
            vae_lab.fit(*QUIET, wrong)


def test_a_composed_config_is_trained_also_from_a_thread(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    config = vae_lab.compose(*QUIET, "model/prior=vamp", "trainer.max_epochs=1")
    config.model.latent_dim = 3
    with ThreadPoolExecutor(1) as threads:
        lab = threads.submit(vae_lab.fit, config).result()
    assert lab.encode(torch.zeros(2, 1, 28, 28)).mean.shape == (2, 3)
    (run,) = tmp_path.glob("outputs/run/*")
    assert load_config(run).model == config.model
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        words = [word for word in QUIET if word != "logger=null"]  # which Hydra's own parser refuses
        made = compose("train", [*words, "trainer.max_epochs=1"], return_hydra_config=True)
    assert vae_lab.fit(made, "model.latent_dim=2", "hydra.run.dir=two").sample(1).shape == (1, 1, 28, 28)
    for call, words in (
        (lambda: vae_lab.compose("modle=conv"), "did you mean model"),
        (lambda: vae_lab.fit(config, "model.latnt_dim=2"), "did you mean model.latent_dim"),
        (lambda: vae_lab.fit(config, config), "found 2 configs"),
        (lambda: vae_lab.fit({"model": "conv"}), "expected overrides"),
    ):
        with pytest.raises(UsageError, match=words):
            call()

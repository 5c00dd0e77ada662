"""Loggers beside TensorBoard: each job has a record of its own, with numbers, choices and pictures."""

import csv
import sqlite3

import pytest
from helpers.commands import QUIET
from helpers.data import FAST
from omegaconf import OmegaConf

from vae_lab.callbacks import loggers
from vae_lab.utils.errors import UsageError

PICTURE = ("callbacks.baseline=null", "callbacks.images.pictures=[samples]", "trainer.max_epochs=1")


def test_lightnings_csv_beside_tensorboard(command):
    done = command(*QUIET, "logger=[tensorboard,csv]")
    assert done.code == 0, done.stderr
    assert list((done.run / "tensorboard").glob("events.out.tfevents.*"))
    with (done.run / "csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row["train/elbo"] for row in rows) and any(row["best/val/elbo"] for row in rows)
    assert OmegaConf.load(done.run / "csv/version_0/hparams.yaml")["model.latent_dim"] == 8


@pytest.mark.slow
def test_each_job_of_a_sweep_finishes_its_record(command):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    names = "logger=[tensorboard,wandb,mlflow]"
    done = command("-m", *FAST, *PICTURE, names, "logger.wandb.mode=offline", "seed=1,2", "hydra.sweep.dir=sw")
    assert done.code == 0, done.stderr
    assert "already in progress" not in done.stderr
    for job in (done.cwd / "sw/0", done.cwd / "sw/1"):
        (record,) = job.glob("wandb/offline-run-*")
        assert list(record.glob("run-*.wandb"))
        assert {path.suffix for path in record.glob("files/media/*/*/*") if path.is_file()} == {".png", ".gif"}
    with sqlite3.connect(done.cwd / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)] * 2
        names = {name for (name,) in database.execute("select distinct key from metrics")}
        chosen = dict(database.execute("select key, value from params"))
    assert {"val/elbo", "test/elbo", "best/val/elbo"} <= names and chosen["model"] == "mlp"
    assert len(list(done.cwd.glob("mlruns/*/*/artifacts/images/*.png"))) >= 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    target = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}[name]
    node = OmegaConf.create({name: {"_target_": f"lightning.pytorch.loggers.{target}", "_partial_": True}})
    with pytest.raises(UsageError, match=rf"(?s)logger={name}: .*pip install 'vae_lab\[{name}\]'"):
        loggers.build_loggers(node, tmp_path, None)

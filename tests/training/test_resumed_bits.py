"""A run that was stopped and resumed ends with the same bits as one that never was.

`scripts/stress.py` does this at random moments, under every signal.
"""

import functools
import json
import os
import shutil
import signal

import pytest
import torch
from helpers.commands import QUIET, Command, saved, wait_for
from helpers.comparison import differences, events
from helpers.data import FAST
from helpers.named import stop_at
from helpers.refusals import refused
from helpers.steps import STATEFUL

BOARD = (*FAST, "callbacks.images=null", "callbacks.baseline=null")
SEVEN = ("trainer.limit_train_batches=7", "optimizer.ema_decay=0.9", "data.binarize=dynamic", "data.shift=1")


@pytest.fixture(scope="module")
def never_stopped(warm, tmp_path_factory):
    """The run of given overrides, trained once."""

    @functools.cache
    def run(*argv):
        done = Command(warm, tmp_path_factory.mktemp("never_stopped"))(*argv)
        assert done.code == 0, done.stderr
        return done.run

    return run


@pytest.fixture
def finished(never_stopped, tmp_path):
    """A finished run of two epochs of three steps."""
    return shutil.copytree(never_stopped(*QUIET), tmp_path / "finished")


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def stopped_and_resumed(command, never_stopped, argv, stop, sign):
    """What differs between a run that was stopped and resumed with other steps per call, and one that never was."""
    part = command.cwd / "part"
    stopped = command(*argv, *stop_at(*stop, sign), f"hydra.run.dir={part}", "trainer.steps_per_execution=1")
    assert stopped.code == (-sign if sign == signal.SIGKILL else 143), stopped.stderr[-2000:]
    done = command(f"resume={part}", "trusted=true", "trainer.steps_per_execution=3")
    assert done.code == 0 and "Traceback" not in done.stderr, done.stderr
    return differences(part, never_stopped(*argv))


@pytest.mark.parametrize(
    ("stop", "sign"),
    [((17, "step"), signal.SIGKILL), ((14, "validation"), signal.SIGTERM), ((28, "end"), signal.SIGTERM),
     ((28, "test"), signal.SIGKILL)],
    ids=str,
)  # fmt: skip
def test_weights_average_optimiser_and_metrics_are_those_of_a_run_that_was_never_stopped(
    command, never_stopped, stop, sign
):
    argv = (*BOARD, *SEVEN, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "optimizer/schedule=cosine",
            "callbacks.last.every_n_steps=5")  # fmt: skip
    assert stopped_and_resumed(command, never_stopped, argv, stop, sign) == []


@pytest.mark.parametrize(
    ("options", "step"),
    [(("trainer.max_epochs=3", "data.val_size=0"), 6), (("trainer.max_epochs=-1", "trainer.max_steps=8"), 8)],
    ids=str,
)
def test_so_they_are_without_validation_and_at_an_end_within_an_epoch(command, never_stopped, options, step):
    assert stopped_and_resumed(command, never_stopped, (*BOARD, *options), (step, "step"), signal.SIGTERM) == []


def test_a_run_that_stops_early_does_so_after_a_resume_and_is_then_finished(command, never_stopped):
    stopping = "callbacks.early_stopping"
    argv = (*BOARD, "callbacks=early_stopping", f"{stopping}.patience=2", f"{stopping}.monitor=val/kl",
            f"{stopping}.mode=min", "trainer.max_epochs=20")  # fmt: skip
    assert stopped_and_resumed(command, never_stopped, argv, (6, "validated"), signal.SIGTERM) == []
    again = command(f"resume={command.cwd}/part", "trusted=true")
    assert again.code == 2 and "nothing is left to do" in again.stderr


def test_training_longer_is_the_same_as_training_whole(command):
    """Codes, multiplier and discriminator included. A cosine over one epoch would be another one over two."""
    argv = (*QUIET, *STATEFUL, "data.image_size=16", "optimizer.ema_decay=0.9")
    short = command(*argv, "trainer.max_epochs=1")
    assert short.code == 0, short.stderr
    config = (short.run / ".hydra/config.yaml").read_bytes()
    more = command(f"resume={short.run}", "trainer.max_epochs=2")
    assert more.code == 0, more.stderr
    assert more.run == short.run and more.summary["epochs"] == 2
    assert (more.run / ".hydra/config.yaml").read_bytes() == config
    whole = command(*argv, "trainer.max_epochs=2", "hydra.run.dir=whole")
    assert whole.code == 0, whole.stderr
    assert differences(more.run, command.cwd / "whole") == []
    state = torch.load(more.run / "checkpoints/last.ckpt")["state_dict"]
    assert any("discriminator" in name for name in state) and any("codes.usage" in name for name in state)
    table = (more.run / "metrics.csv").read_text()
    assert "codes_used" in table and "train/perceptual" in table


def test_a_signal_ends_a_run_cleanly_and_its_pictures_are_drawn(command):
    argv = (*FAST, "callbacks.images.pictures=[samples]", "callbacks.baseline=null", "trainer.max_epochs=4000")
    started = command.start(*argv)
    wait_for(lambda: started.output().count("val elbo") > 2)
    os.kill(started.pid, signal.SIGINT)
    stopped = started.wait()
    assert stopped.code == 130, stopped.stderr[-2000:]
    assert "Traceback" not in stopped.stderr and stopped.summary["status"] == "interrupted"
    assert f"resume={stopped.run}" in stopped.stderr.replace("\n", "")
    epochs = stopped.summary["steps"] // 3 + 2
    resumed = command(f"resume={stopped.run}", f"trainer.max_epochs={epochs}", "trainer.steps_per_execution=2")
    assert resumed.code == 0, resumed.stderr
    assert resumed.summary["status"] == "completed" and resumed.summary["epochs"] == epochs
    drawn = sorted(path.name for path in (stopped.run / "images").glob("samples_*.png"))
    assert drawn == [f"samples_epoch={epoch:04d}.png" for epoch in range(1, epochs + 1)]


def test_a_second_ctrl_c_stops_at_once(command):
    started = command.start(*FAST, "callbacks.images.every_n_epochs=1", "trainer.limit_train_batches=7",
                            "trainer.max_epochs=4000")  # fmt: skip
    wait_for(lambda: started.output().count("val elbo") > 1)
    os.kill(started.pid, signal.SIGINT)
    wait_for(lambda: saved(command.cwd))
    assert "Ctrl-C again stops at once" in started.output()
    os.kill(started.pid, signal.SIGINT)
    stopped = started.wait()
    assert stopped.code == 130, stopped.stderr[-2000:]
    assert stopped.summary["status"] == "interrupted" and "Traceback" not in stopped.stderr
    assert "nothing was saved since" in stopped.stderr
    assert f"to resume: python -m vae_lab.train resume={stopped.run}" in stopped.stderr.replace("\n", "")


@pytest.mark.parametrize("override", [(), ("trainer.max_epochs=1",)])
def test_a_finished_run_is_left_as_it_is(command, finished, override):
    before = contents(finished)
    refused(command(f"resume={finished}", *override), "nothing is left to do", "trainer.max_epochs")
    assert contents(finished) == before


def test_a_run_killed_before_its_test_is_tested_on_resume(command, finished):
    metrics = json.loads((finished / "summary.json").read_text())["metrics"]
    (finished / "summary.json").write_text("{")  # as a power cut leaves it
    again = command(f"resume={finished}")
    assert again.code == 0, again.stderr
    assert json.loads((finished / "summary.json").read_text())["metrics"] == metrics


def test_an_end_within_an_epoch_is_validated_and_stays_in_the_table(command, never_stopped):
    argv = (*QUIET, "trainer.max_epochs=-1")
    done = command(*argv, "trainer.max_steps=4")
    assert done.code == 0, done.stderr
    more = command(f"resume={done.run}", "trainer.max_steps=8")
    assert more.code == 0, more.stderr
    whole = never_stopped(*argv, "trainer.max_steps=8")
    ours, theirs = (torch.load(run / "checkpoints/last.ckpt")["state_dict"] for run in (done.run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    table = [(run / "metrics.csv").read_text().splitlines() for run in (done.run, whole)]
    assert [line for line in table[0] if line.split(",")[1] != "4"] == table[1]


def test_another_session_without_tensorboard_loses_nothing(command):
    done = command(*BOARD)
    assert command(f"resume={done.run}", "trainer.max_epochs=3", "logger=null").code == 0
    assert command(f"resume={done.run}", "trainer.max_epochs=4").code == 0
    steps = {step for tag, step in events(done.run) if tag == "val/elbo"}
    assert steps == {3, 6, 12}


def test_max_time_ends_a_session_and_the_next_has_its_own(command):
    first = command(*QUIET, "trainer.max_epochs=100000", "trainer.max_time='00:00:00:01'")
    assert first.code == 0 and first.summary["status"] == "interrupted", first.stderr
    assert "to resume: python -m vae_lab.train resume=" in first.stderr
    again = command(f"resume={first.run}", f"trainer.max_epochs={first.summary['epochs'] + 2}")
    assert again.code == 0 and again.summary["status"] == "completed", again.stderr


def test_a_completed_run_that_is_extended_and_killed_is_not_completed(command, finished):
    killed = command(f"resume={finished}", "trainer.max_epochs=3", *stop_at(9, "test", signal.SIGKILL))
    assert killed.code == -signal.SIGKILL
    assert json.loads((finished / "summary.json").read_text())["status"] == "interrupted"


def test_without_best_weights_the_last_are_tested(command, finished, never_stopped):
    more = command(f"resume={finished}", "trainer.max_epochs=4", "callbacks.best.save_top_k=0")
    assert more.code == 0, more.stderr
    straight = never_stopped(*QUIET, "trainer.max_epochs=4", "callbacks.best=null")
    ours, theirs = (json.loads((run / "summary.json").read_text())["metrics"] for run in (finished, straight))
    assert ours["test/elbo"] == theirs["test/elbo"]


@pytest.mark.parametrize(
    ("damaged", "override", "words"),
    [
        (None, "trainer.limit_train_batches=4", ["the run has 3 steps per epoch, this command gives 4"]),
        ("metrics.csv", "logger=null", ["metrics.csv", "not a metrics table"]),
        ("checkpoints/best.ckpt", "logger=null", ["best.ckpt", "remove it"]),
    ],
)
def test_what_cannot_be_resumed_is_refused_before_anything_is_trained(command, finished, damaged, override, words):
    if damaged:
        (finished / damaged).write_bytes(b"\xff\xfe\x00")
    refused(command(f"resume={finished}", "trainer.max_epochs=3", override), *words)
    if damaged:
        (finished / damaged).unlink()
        assert command(f"resume={finished}", "trainer.max_epochs=3").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("callbacks.best.monitor=val/elb",), ["monitor=val/elb", "did you mean val/elbo?"]),
        (("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/x"), ["EarlyStopping", "val/x"]),
        (("callbacks=early_stopping", "data.val_size=0"), ["EarlyStopping", "data.val_size"]),
        (("callbacks.best.mode=maximum",), ["callbacks.best.mode must be max or min"]),
        (("trainer.max_time=10",), ["trainer.max_time=10", "00:12:00:00"]),
    ],
    ids=str,
)
def test_what_would_fail_after_an_epoch_is_refused_before(command, options, words):
    refused(command(*FAST, *options), *words)
    assert not list(command.cwd.glob("outputs/*/*"))

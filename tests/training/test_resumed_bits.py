"""A run that was stopped and resumed ends with the same bits as one that never was."""

import csv
import functools
import json
import os
import signal

import pytest
import torch
from helpers.commands import Command, saved, wait_for
from helpers.comparison import differences, events
from helpers.data import FAST
from helpers.named import stop_at
from helpers.refusals import refused

QUICK = (*FAST, "callbacks.images=null", "trainer.limit_train_batches=7", "optimizer.ema_decay=0.9",
         "optimizer/schedule=cosine", "data.binarize=dynamic", "data.shift=1")  # fmt: skip


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt")["state_dict"]


def assert_same(run, other):
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (run / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory):
    """4 epochs of 7 steps, never stopped."""
    done = Command(warm, tmp_path_factory.mktemp("whole"))(*QUICK, "trainer.max_epochs=4")
    assert done.code == 0, done.stderr
    return done


def test_training_longer_is_the_same_as_training_whole(command, whole):
    # Constant in the total length: a cosine over 2 epochs is another one over 4.
    short = command(*QUICK, "trainer.max_epochs=2", "optimizer/schedule=constant")
    more = command(f"resume={short.run}", "trainer.max_epochs=4")
    assert more.code == 0, more.stderr
    assert more.run == short.run and more.summary["epochs"] == 4
    straight = command(*QUICK, "trainer.max_epochs=4", "optimizer/schedule=constant", "name=straight",
                       "hydra.run.dir=straight")  # fmt: skip
    assert straight.code == 0, straight.stderr
    assert_same(command.cwd / "straight", more.cwd / "outputs" / short.run.parent.name / short.run.name)


@pytest.mark.parametrize("steps", [1, 9, 20])
def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_bits(command, whole, steps):
    """max_time cannot be aimed at a step, a second limit can: the checkpoint after `steps` is the one resumed."""
    part = command(*QUICK, "trainer.max_epochs=4", f"callbacks.last.every_n_steps={steps}",
                   "trainer.steps_per_execution=3")  # fmt: skip
    assert part.code == 0, part.stderr
    assert_same(part.run, whole.run)


def interrupted_run(command, sign, *options):
    """A run that gets a signal once it trains."""
    started = command.start(*QUICK, "trainer.max_epochs=4000", "trainer.log_every_n_steps=1", *options)
    wait_for(lambda: "val elbo" in started.output())
    os.kill(started.pid, sign)
    return started.wait()


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_cleanly_and_it_can_be_resumed(command, sign, code):
    stopped = interrupted_run(command, sign, "optimizer/schedule=constant")
    assert stopped.code == code, stopped.stderr[-2000:]
    assert "Traceback" not in stopped.stderr
    assert stopped.summary["status"] == "interrupted"
    assert f"resume={stopped.run}" in stopped.stderr.replace("\n", "")
    at = stopped.summary["steps"]
    resumed = command(f"resume={stopped.run}", f"trainer.max_epochs={at // 7 + 2}", "trainer.steps_per_execution=2")
    assert resumed.code == 0, resumed.stderr
    assert resumed.summary["status"] == "completed"
    assert resumed.summary["steps"] == (at // 7 + 2) * 7
    straight = command(
        *QUICK, "optimizer/schedule=constant", f"trainer.max_epochs={at // 7 + 2}", "hydra.run.dir=straight"
    )
    assert straight.code == 0, straight.stderr
    assert_same(command.cwd / "straight", resumed.run)


def test_pictures_that_were_due_at_a_signal_are_drawn(command):
    pictures = ("callbacks.images.pictures=[samples]", "callbacks.images.every_n_epochs=1")
    started = command.start(*FAST, *pictures, "trainer.limit_train_batches=7", "trainer.max_epochs=4000")
    wait_for(lambda: started.output().count("val elbo") > 5)
    os.kill(started.pid, signal.SIGINT)
    stopped = started.wait()
    assert stopped.code == 130, stopped.stderr[-2000:]
    epochs = stopped.summary["steps"] // 7 + 2
    resumed = command(f"resume={stopped.run}", f"trainer.max_epochs={epochs}")
    assert resumed.code == 0, resumed.stderr
    drawn = sorted(path.name for path in (stopped.run / "images").glob("samples_*.png"))
    assert drawn == [f"samples_epoch={epoch:04d}.png" for epoch in range(1, epochs + 1)]


def test_a_second_ctrl_c_stops_at_once(command):
    started = command.start(*FAST, "callbacks.images.every_n_epochs=1", "trainer.limit_train_batches=7",
                            "trainer.max_epochs=4000")  # fmt: skip
    wait_for(lambda: started.output().count("val elbo") > 4)
    os.kill(started.pid, signal.SIGINT)
    wait_for(lambda: saved(command.cwd))
    assert "Ctrl-C again stops at once" in started.output()
    os.kill(started.pid, signal.SIGINT)
    stopped = started.wait()
    assert stopped.code == 130, stopped.stderr[-2000:]
    assert stopped.summary["status"] == "interrupted" and "Traceback" not in stopped.stderr
    assert "nothing was saved since" in stopped.stderr
    assert f"to resume: python -m vae_lab.train resume={stopped.run}" in stopped.stderr.replace("\n", "")


def test_killed_rows_are_written_once(command):
    started = command.start(*QUICK, "trainer.max_epochs=4000", "callbacks.last.every_n_seconds=0.0")
    wait_for(lambda: started.output().count("val elbo") > 5)
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait().code == -signal.SIGKILL
    (run,) = command.cwd.glob("outputs/*/*")
    step = torch.load(run / "checkpoints/last.ckpt")["global_step"]
    done = command(f"resume={run}", f"trainer.max_epochs={step // 7 + 3}")
    assert done.code == 0, done.stderr
    with (run / "metrics.csv").open() as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file)]
    assert epochs == list(range(1, step // 7 + 4))


@pytest.mark.parametrize("override", [(), ("trainer.max_epochs=2",)])
def test_a_finished_run_is_left_as_it_is(command, whole, override):
    before = {path: path.read_bytes() for path in whole.run.rglob("*") if path.is_file()}
    again = command(f"resume={whole.run}", *override)
    assert again.code == 2
    assert "nothing is left to do" in again.stderr and "trainer.max_epochs" in again.stderr
    assert {path: path.read_bytes() for path in whole.run.rglob("*") if path.is_file()} == before


def test_a_run_killed_before_its_test_is_tested_on_resume(command, whole):
    done = command(*QUICK, "trainer.max_epochs=4")
    (done.run / "summary.json").unlink()
    folder = next(done.cwd.glob("outputs/*/*"))
    again = command(f"resume={folder}")
    assert again.code == 0, again.stderr
    assert again.summary["metrics"]["test/elbo"] == whole.summary["metrics"]["test/elbo"]
    assert_same(folder, whole.run)


def test_resume_keeps_the_runs_own_config(command):
    done = command(*QUICK, "model.latent_dim=3", "trainer.max_epochs=1")
    config = (done.run / ".hydra/config.yaml").read_bytes()
    again = command(f"resume={done.run}", "trainer.max_epochs=2", "callbacks.best.save_top_k=1")
    assert again.code == 0, again.stderr
    assert (done.run / ".hydra/config.yaml").read_bytes() == config
    assert again.summary["num_parameters"] == done.summary["num_parameters"]


# --- stopped at a given place -----------------------------------------------------------------------------


class Stopped:
    """A command that is stopped at a place and resumed; `differences` compares the run with one that never was."""

    def __init__(self, command, never_stopped, *argv) -> None:
        self.command, self.argv = command, (*FAST, "trainer.log_every_n_steps=2", *argv)
        self.whole, self.part = never_stopped(*self.argv), command.cwd / "part"

    def at(self, step, where, sign=signal.SIGTERM):
        argv = (*self.argv, *stop_at(step, where, sign))
        stopped = self.command(*argv, f"hydra.run.dir={self.part}", "trainer.steps_per_execution=1")
        assert stopped.code == (143 if sign != signal.SIGKILL else -9), stopped.stderr[-2000:]
        return self

    def resumed(self, *argv):
        done = self.command(f"resume={self.part}", "trusted=true", *argv)
        assert done.code == 0 and "Traceback" not in done.stderr, done.stderr
        return differences(self.part, self.whole)


@pytest.fixture(scope="module")
def never_stopped(warm, tmp_path_factory):
    """The run of given overrides, trained once."""

    @functools.cache
    def run(*argv):
        done = Command(warm, tmp_path_factory.mktemp("never_stopped"))(*argv)
        assert done.code == 0, done.stderr
        return done.run

    return run


NO_PICTURES = ("callbacks.images=null",)
STOPPING = "callbacks.early_stopping"
EARLY = (*NO_PICTURES, "callbacks=early_stopping", f"{STOPPING}.patience=2", f"{STOPPING}.monitor=val/kl",
         f"{STOPPING}.mode=min", "trainer.max_epochs=20")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "step", "where"),
    [
        (("trainer.max_epochs=3", "callbacks.images.pictures=[samples]"), 3, "step"),
        (("trainer.max_epochs=3", "callbacks.images.pictures=[samples]"), 6, "validation"),
        (("trainer.max_epochs=3", "callbacks.images.pictures=[samples]"), 9, "validated"),
        (("trainer.max_epochs=3", "callbacks.images.pictures=[samples]"), 9, "end"),
        ((*NO_PICTURES, "trainer.max_epochs=3", "data.val_size=0"), 6, "step"),
        ((*NO_PICTURES, "trainer.max_epochs=3", "data.val_size=0"), 9, "step"),
        ((*NO_PICTURES, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"), 9, "step"),
        ((*NO_PICTURES, "trainer.max_epochs=3", "trainer.num_sanity_val_steps=2"), 9, "step"),
        ((*NO_PICTURES, "trainer.max_epochs=-1", "trainer.max_steps=9"), 9, "step"),
        ((*NO_PICTURES, "trainer.max_epochs=-1", "trainer.max_steps=9"), 9, "validation"),
        ((*NO_PICTURES, "trainer.max_epochs=-1", "trainer.max_steps=8"), 8, "step"),
        ((*NO_PICTURES, "trainer.max_epochs=-1", "trainer.max_steps=8"), 8, "validation"),
        (EARLY, 6, "step"),
        (EARLY, 6, "validated"),
    ],
    ids=str,
)
def test_wherever_it_was_stopped_it_ends_as_one_that_never_was(command, never_stopped, options, step, where):
    assert Stopped(command, never_stopped, *options).at(step, where).resumed() == []


def test_a_run_killed_in_its_test_is_tested_as_if_it_had_not_been(command, never_stopped):
    options = ("trainer.max_epochs=3", "callbacks.images.pictures=[samples]")
    assert Stopped(command, never_stopped, *options).at(9, "test", sign=signal.SIGKILL).resumed() == []


def test_an_end_within_an_epoch_is_validated_and_stays_in_the_table(command, never_stopped):
    run = Stopped(command, never_stopped, *NO_PICTURES, "trainer.max_epochs=-1", "trainer.max_steps=12")
    done = command(*run.argv, "trainer.max_steps=4", f"hydra.run.dir={run.part}")
    assert done.code == 0, done.stderr
    more = command(f"resume={run.part}", "trainer.max_steps=12")
    assert more.code == 0, more.stderr
    ours, theirs = weights(run.part), weights(run.whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    table = [(run.part / "metrics.csv").read_text().splitlines(), (run.whole / "metrics.csv").read_text().splitlines()]
    assert [line for line in table[0] if line.split(",")[1] != "4"] == table[1]


def test_another_session_without_tensorboard_loses_nothing(command):
    done = command(*FAST, *NO_PICTURES)
    assert command(f"resume={done.run}", "trainer.max_epochs=3", "logger=null").code == 0
    assert command(f"resume={done.run}", "trainer.max_epochs=4").code == 0
    steps = {step for tag, step in events(done.run) if tag == "val/elbo"}
    assert steps == {3, 6, 12}


def test_max_time_ends_a_session_and_the_next_has_its_own(command):
    first = command(*FAST, *NO_PICTURES, "trainer.max_epochs=100000", "trainer.max_time='00:00:00:01'")
    assert first.code == 0 and first.summary["status"] == "interrupted", first.stderr
    assert "to resume: python -m vae_lab.train resume=" in first.stderr
    steps = first.summary["steps"]
    again = command(f"resume={first.run}")
    assert again.code == 0 and again.summary["steps"] > steps
    unlimited = command(
        f"resume={first.run}", "trainer.max_time=null", f"trainer.max_epochs={again.summary['epochs'] + 2}"
    )
    assert unlimited.code == 0 and unlimited.summary["status"] == "completed", unlimited.stderr
    assert "provided during" not in unlimited.stderr


def test_a_run_that_stopped_early_is_finished(command):
    done = command(*FAST, *EARLY, "optimizer.lr=0")
    assert done.code == 0 and done.summary["epochs"] < 20
    again = command(f"resume={done.run}")
    assert again.code == 2 and "nothing is left to do" in again.stderr


def test_a_completed_run_that_is_extended_and_killed_is_not_completed(command, never_stopped):
    run = Stopped(command, never_stopped, *NO_PICTURES, "trainer.max_epochs=4")
    command(*run.argv, "trainer.max_epochs=2", f"hydra.run.dir={run.part}")
    killed = command(f"resume={run.part}", "trainer.max_epochs=4", *stop_at(12, "test", signal.SIGKILL))
    assert killed.code == -9
    left = run.resumed("trainer.max_epochs=4")
    assert [line for line in left if "'test/" not in line] == []  # it was tested at its first end too


def test_without_best_weights_the_last_are_tested(command):
    done = command(*FAST, *NO_PICTURES, "trainer.max_epochs=1")
    more = command(f"resume={done.run}", "trainer.max_epochs=4", "callbacks.best.save_top_k=0")
    assert more.code == 0, more.stderr
    straight = command(*FAST, *NO_PICTURES, "trainer.max_epochs=4", "callbacks.best=null", "hydra.run.dir=straight")
    assert straight.code == 0
    theirs = json.loads((command.cwd / "straight/summary.json").read_text())
    assert more.summary["metrics"]["test/elbo"] == theirs["metrics"]["test/elbo"]


def test_other_epochs_are_refused(command):
    done = command(*FAST, *NO_PICTURES)
    again = command(f"resume={done.run}", "trainer.max_epochs=3", "trainer.limit_train_batches=4")
    assert again.code == 2 and "the run has 3 steps per epoch, this command gives 4" in again.stderr


def test_a_summary_that_a_power_cut_left_half_is_nothing_to_go_by(command):
    done = command(*FAST, *NO_PICTURES)
    (done.run / "summary.json").write_text("{")
    again = command(f"resume={done.run}", "trainer.max_epochs=3")
    assert again.code == 0, again.stderr


def test_a_table_that_is_none_is_named(command):
    done = command(*FAST, *NO_PICTURES)
    (done.run / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    again = command(f"resume={done.run}", "trainer.max_epochs=3")
    assert again.code == 2 and "metrics.csv" in again.stderr and "Traceback" not in again.stderr


def test_damaged_best_weights_are_found_before_anything_is_trained(command):
    done = command(*FAST, *NO_PICTURES)
    (done.run / "checkpoints/best.ckpt").write_bytes(b"damaged")
    again = command(f"resume={done.run}", "trainer.max_epochs=3")
    assert again.code == 2 and "remove it" in again.stderr
    (done.run / "checkpoints/best.ckpt").unlink()
    assert command(f"resume={done.run}", "trainer.max_epochs=3").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("callbacks.best.monitor=val/elb",), ["monitor=val/elb", "did you mean val/elbo?"]),
        (("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/x"), ["EarlyStopping", "val/x"]),
        (("callbacks=early_stopping", "data.val_size=0"), ["EarlyStopping", "data.val_size"]),
        (("callbacks=early_stopping", "callbacks.early_stopping.mode=up"), ["mode"]),
        (("callbacks.best.mode=maximum",), ["callbacks.best.mode must be max or min"]),
        (("callbacks.last.every_n_seconds=-1",), ["callbacks.last.every_n_seconds"]),
        (("trainer.max_time=10",), ["trainer.max_time=10", "00:12:00:00"]),
    ],
    ids=str,
)
def test_what_would_fail_after_an_epoch_is_refused_before(command, options, words):
    refused(command(*FAST, *options), *words)
    assert not list(command.cwd.glob("outputs/*/*"))

"""A run that was stopped and resumed ends with the same bits as one that never was."""

import csv
import os
import signal
import time

import pytest
import torch
from conftest import FAST

QUICK = (*FAST, "callbacks.images=null", "trainer.limit_train_batches=7", "optimizer.ema_decay=0.9",
         "optimizer/schedule=cosine", "data.binarize=dynamic", "data.shift=1")  # fmt: skip


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt")["state_dict"]


def assert_same(run, other):
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (run / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory):
    """4 epochs of 7 steps, never stopped."""
    from conftest import Command

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


@pytest.mark.parametrize("steps", [1, 5, 9, 13, 20])
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
    """They are drawn while training goes on, so some are not done when the signal comes; a resumed run has them all."""
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


def test_a_second_ctrl_c_leaves_out_the_pictures_that_the_first_waits_for(command):
    started = command.start(*FAST, "callbacks.images.every_n_epochs=1", "trainer.limit_train_batches=7",
                            "trainer.max_epochs=4000")  # fmt: skip
    wait_for(lambda: started.output().count("val elbo") > 4)
    os.kill(started.pid, signal.SIGINT)
    wait_for(lambda: list(command.cwd.glob("outputs/*/*/checkpoints/last.ckpt")))
    assert "Ctrl-C again stops at once" in started.output()
    os.kill(started.pid, signal.SIGINT)
    stopped = started.wait()
    assert stopped.code == 130, stopped.stderr[-2000:]
    assert stopped.summary["status"] == "interrupted" and "Traceback" not in stopped.stderr
    assert "nothing was saved since" in stopped.stderr
    assert f"to go on: python -m vae_lab.train resume={stopped.run}" in stopped.stderr.replace("\n", "")


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


def test_an_interrupted_validation_is_made_up_for(command, whole):
    """The checkpoint stands after the last step of an epoch, its validation not done."""
    part = command(*QUICK, "trainer.max_epochs=4")
    path = part.run / "checkpoints/last.ckpt"
    saved = torch.load(path)
    assert saved["validated_at"] == saved["global_step"] == 28
    saved["validated_at"] = 21
    (part.run / "summary.json").write_text('{"status": "interrupted"}')
    saved["callbacks"]["MetricsTable"] |= {"written_at": 21, "num_rows": 3}
    torch.save(saved, path)
    done = command(f"resume={part.run}")
    assert done.code == 0, done.stderr
    assert done.summary["steps"] == 28
    assert_same(part.run, whole.run)


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

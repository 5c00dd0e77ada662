"""Faults made on purpose, as scripts/stress.py makes more of them: kills, signals, disks."""

import os
import signal
import subprocess
import time
from contextlib import nullcontext

import pytest

from scripts import stress
from scripts.stressing import cases, leavings, matrix, signals
from scripts.stressing.commands import Command
from scripts.stressing.kills import killed_run

SHORT = (*stress.KILLED, "trainer.max_epochs=50")


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory):
    """A run that is never killed."""
    done = Command(warm, tmp_path_factory.mktemp("whole"))(*SHORT)
    assert done.code == 0, done.stderr
    return done


@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(warm, tmp_path, whole, seed):
    report = killed_run(Command(warm, tmp_path), SHORT, whole.run, 3, (0.4, 1.6), seed)
    assert sum(report.sent.values()) > 0
    assert report.failures == [] and report.differences == []


def test_the_comparison_sees_every_difference(whole, command):
    other = command(*SHORT, "seed=1")
    found = leavings.differences(other.run, whole.run)
    for what in ("last.ckpt: /state_dict", "best.ckpt: /optimizer_states", "metrics.csv", "event files: ('val/elbo'",
                 "images: samples", "summary.json: metrics"):  # fmt: skip
        assert any(line.startswith(what) for line in found), what
    assert leavings.differences(whole.run, whole.run) == []


def test_an_experiment_file_survives_a_kill(command, tmp_path):
    root = matrix.write_data(tmp_path / "data")
    found = list(matrix.matrix(command, root, tmp_path, ["replica_pytorch_examples"]))
    assert [case.ok for case in found] == [True], found
    assert set(matrix.experiments()) >= {"replica_pytorch_examples", "replica_pokemon_keras"}


@pytest.fixture(scope="module")
def can_mount(tmp_path_factory):
    """Whether this process may mount a file system."""
    folder = tmp_path_factory.mktemp("mount")
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("can_mount")
@pytest.mark.parametrize("fault", [cases.full_disk, cases.read_only, cases.read_only_outputs])
def test_a_disk_that_refuses_is_a_clear_error_and_the_last_checkpoint_is_whole(command, tmp_path, fault):
    found = fault(command, tmp_path)
    assert found.ok, found


def test_what_is_not_there_is_named(command, tmp_path):
    for found in cases.missing_mount(command, tmp_path):
        assert found.ok, found


def phase(name, folder):
    return next(it for it in signals.phases(folder, folder) if it.name == name)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("name", ["a long call", "validation", "pictures in the process"])
def test_a_scheduler_is_obeyed_wherever_a_run_is(command, tmp_path, name, sign):
    there = phase(name, tmp_path)
    started = command.start(*there.options)
    cases.wait_for(lambda: there.shows(started))
    time.sleep(0.3)
    os.kill(started.pid, sign)
    assert cases.told(started.wait(), 143, "to resume: python -m vae_lab.train resume=") is None
    assert cases.saved(tmp_path)


def test_the_commands_parts_are_all_there(capsys):
    with pytest.raises(SystemExit) as stop:
        stress.main(["kils"])
    assert stop.value.code == 2
    assert "there is no part kils; expected kills, experiments, signals" in capsys.readouterr().err


def test_the_command_reports_and_fails_with_its_cases(monkeypatch, tmp_path, capsys):
    good, bad = cases.Case("one", "as it should", True), cases.Case("two", "wrong weights", False)

    def explodes(*_):
        yield good
        raise RuntimeError("no right to mount")

    monkeypatch.setattr(stress, "warm_process", nullcontext)
    monkeypatch.setattr(stress, "PARTS", {"a": lambda *_: [good], "b": lambda *_: [good, bad], "c": explodes})
    assert stress.main(["a", "--json", str(tmp_path / "report.json")]) == 0
    assert '"part": "a"' in (tmp_path / "report.json").read_text()
    assert stress.main(["b"]) == 1 and "FAIL  two: wrong weights" in capsys.readouterr().out
    assert stress.main(["c"]) == 1 and "c: could not be tried: RuntimeError: no right" in capsys.readouterr().out

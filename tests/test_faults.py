"""Kills and signals through the functions of scripts/stress.py, here in forked processes; and disks that refuse."""

import json
import signal
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from helpers.commands import QUIET, Command, saved, wait_for

from scripts import stress

SHORT = (*stress.RUN, "trainer.max_epochs=30", "callbacks.images=null", "callbacks.baseline=null")
ENDLESS = (*QUIET, "trainer.max_epochs=100000", "callbacks.last.every_n_seconds=0.2")


def forked(command):
    def start(folder, argv):
        started = command.start(*argv, cwd=folder)
        return SimpleNamespace(
            pid=started.pid, output=started.output, wait=lambda seconds=90: started.wait(seconds).code
        )

    return start


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory):
    """A run that is never killed."""
    done = Command(warm, tmp_path_factory.mktemp("whole"))(*SHORT)
    assert done.code == 0, done.stderr
    return done


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(command, whole):
    found = stress.killed_run(command.cwd, SHORT, whole.run, 3, (0.4, 1.2), start=forked(command))
    assert found.sent.total() > 0 and found.wrong == []


def test_the_comparison_sees_every_difference(whole, command):
    other = command(*QUIET, "optimizer.ema_decay=0.9")
    found = stress.differences(other.run, whole.run)
    parts = {f"{name}.ckpt: {part}" for name in ("last", "best") for part in ("state_dict", "optimizer_states")}
    assert {*parts, "metrics.csv", "summary.json: metrics"} <= set(found)
    assert stress.differences(whole.run, whole.run) == []


@pytest.mark.parametrize(
    ("phase", "sign"),
    [("a long call", signal.SIGTERM), ("validation", signal.SIGTERM), ("pictures", signal.SIGUSR1),
     ("the test", signal.SIGTERM)],
)  # fmt: skip
def test_a_scheduler_is_obeyed_wherever_a_run_is(command, phase, sign):
    wrong, seconds = stress.interrupted(command.cwd, phase, sign, start=forked(command))
    assert wrong == [] and seconds < 5
    assert "to resume: python -m vae_lab.train resume=" in command.started.output()


def test_the_report_and_the_exit_code_tell_what_went_wrong(monkeypatch, tmp_path, capsys):
    good, bad = stress.Case("kills", "one", "the same bits", True), stress.Case("signals", "two", "took 6.0 s", False)
    monkeypatch.setattr(stress, "PARTS", {"kills": lambda *_: [good], "signals": lambda *_: [good, bad]})
    assert stress.main(["kills", "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text()) == [good._asdict()]
    assert stress.main([]) == 1
    assert "FAIL  signals  two" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        stress.main(["kils"])
    assert "no part kils: expected kills, signals" in capsys.readouterr().err


# --- disks ------------------------------------------------------------------------------------------------


@contextmanager
def mounted(folder, *options):
    """A file system of its own there, which a process needs the right to mount."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_a_clear_error_and_the_run_can_be_resumed(command, tmp_path):
    with mounted(tmp_path / "disk", "-o", "size=60m") as disk:
        started = command.start(*ENDLESS, cwd=disk)
        wait_for(lambda: saved(disk))
        ballast = disk / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1k"], check=False, capture_output=True)
        (run,) = disk.glob("outputs/*/*")
        ended = started.wait()
        assert ended.code == 1 and "Traceback" not in ended.stderr, ended.stderr[-2000:]
        assert "No space left on device" in ended.stderr and "resume=" in ended.stderr
        ballast.unlink()
        epochs = len((run / "metrics.csv").read_text().splitlines()) + 10
        again = command(f"resume={run}", f"trainer.max_epochs={epochs}")
        assert again.code == 0, again.stderr


def test_outputs_that_cannot_be_written_are_named(command, tmp_path):
    with mounted(tmp_path / "outputs", "-o", "ro"):
        done = command(*QUIET, cwd=tmp_path)
    assert done.code == 2 and "cannot write the run directory" in done.stderr and "Read-only" in done.stderr

"""scripts/: the arithmetic and the tables of the benchmark on made-up numbers, and both commands as users run them."""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts import profile
from scripts.benchmarks import cli, gpu, machine, parts, rows, workers
from scripts.benchmarks.picture import write_picture
from scripts.benchmarks.rows import Note, Wanted, compared, number, subtracted

ROOT = Path(__file__).parents[1]


def run(*argv, cwd):
    return subprocess.run([sys.executable, *argv], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_a_ratio_is_the_median_of_the_pairs_ratios_not_the_ratio_of_the_medians():
    row = compared("a", [10.0, 30.0, 20.0], "b", [10.0, 10.0, 40.0], Wanted("at least", 1.0), "images/s")
    assert (row.ours, row.theirs, row.ratio, row.difference) == (20.0, 10.0, 1.0, None)
    assert row.reached is True and row.all_theirs == [10.0, 10.0, 40.0]


def test_a_scale_changes_what_is_shown_but_no_ratio():
    row = compared("a", [2e-6, 2e-6], "b", [1e-6, 4e-6], Wanted("flat"), "us", 1e6)
    assert (row.ours, row.theirs, row.ratio) == (2.0, 2.5, 1.25)
    assert row.reached is False


def test_a_difference_is_the_median_of_the_pairs_in_the_rows_unit():
    row = subtracted(
        "a", [500.0, 900.0, 700.0], "b", [100.0, 200.0, 600.0], Wanted("at most", 30, " kB more"), "kB", 0.1
    )
    assert (row.ratio, row.difference, row.reached) == (None, pytest.approx(40.0), False)
    assert row.wanted == "at most 30 kB more"


def test_sides_with_different_numbers_of_repeats_are_a_mistake():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        compared("a", [1.0], "b", [1.0, 2.0], Wanted("shown"), "s")


@pytest.mark.parametrize(
    ("wanted", "text", "reached", "missed"),
    [
        (Wanted("at least", 0.95), "at least 0.95", 0.95, 0.94),
        (Wanted("at most", 1.6), "at most 1.6", 1.6, 1.61),
        (Wanted("flat"), "1 within 10%", 0.91, 1.11),
        (Wanted("about"), "about 1", 0.4, 1.3),
    ],
)
def test_what_is_wanted(wanted, text, reached, missed):
    assert str(wanted) == text
    assert wanted.reached(reached) is True and wanted.reached(missed) is False


def test_what_is_only_shown_is_neither_reached_nor_missed():
    assert Wanted("shown").reached(0.1) is None and str(Wanted("shown")) == "-"


def test_numbers_have_three_digits_and_all_before_the_point():
    assert [number(x) for x in (27_512.3, 123.4, 4.1234, 0.012345)] == ["27,512", "123", "4.12", "0.0123"]


def found():
    good = compared("training, mlp", [3e4, 3e4], "bare loop", [2e4, 2e4], Wanted("at least", 1.0), "images/s")
    bad = subtracted("memory", [500.0], "less of it", [100.0], Wanted("at most", 300, " MiB more"), "MiB")
    return [good._replace(part="training"), bad._replace(part="memory")]


def test_the_table_says_what_was_reached_and_what_is_left_out(capsys):
    rows.show(found(), [Note("needs [a] CUDA device", "gpu")])
    shown = capsys.readouterr().out
    first, second = [line.split("│") for line in shown.splitlines() if "│" in line]
    assert [cell.strip() for cell in first[1:9]] == [
        *("training, mlp", "30,000", "bare loop", "20,000", "1.50", "at least 1", "ok", "images/s"),
    ]
    assert [cell.strip() for cell in second[5:9]] == ["+400 MiB", "at most 300 MiB more", "short", "MiB"]
    assert "gpu: needs [a] CUDA device" in shown


def test_the_json_holds_every_repeat_and_the_machine(tmp_path):
    rows.write_json(tmp_path / "out.json", found(), [Note("left out", "gpu")], {"cores": 2})
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["machine"] == {"cores": 2} and content["notes"][0]["part"] == "gpu"
    training, memory = content["rows"]
    assert training["ratio"] == 1.5 and training["all_ours"] == [3e4, 3e4] and training["reached"] is True
    assert memory["difference"] == 400.0 and memory["reached"] is False and memory["part"] == "memory"


def test_a_part_that_fails_is_told_and_leaves_the_others(monkeypatch, capsys):
    def fails(quick):
        yield found()[0]
        raise workers.WorkerFailed("ended with 1")

    monkeypatch.setitem(cli.PARTS, "data", fails)
    row, note = cli.measured("data", quick=True)
    assert row.part == "data" and note == Note("failed: ended with 1", "data", failed=True)
    assert "data: training, mlp | 30,000" in capsys.readouterr().err


def test_workers_take_turns_and_the_first_repeat_of_each_does_not_count(monkeypatch):
    asked = []

    class Counting:
        def __init__(self, what):
            self.name, self.count = what.name, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append(f"end {self.name}")

        def ready(self):
            asked.append(f"ready {self.name}")

        def repeat(self):
            asked.append(self.name)
            self.count += 1
            return self.count

    monkeypatch.setattr(workers, "Worker", Counting)
    assert workers.in_turn([workers.side("a"), workers.side("b")], 2) == [[2, 3], [2, 3]]
    assert asked == ["ready a", "ready b", *"ababab", "end b", "end a"]


def test_a_worker_answers_once_it_is_set_up_and_at_every_request():
    answers = io.StringIO()
    turn = workers.Turn(answers, io.StringIO("\n\n"))
    turn()
    turn(2.5)
    assert answers.getvalue() == "null\n2.5\n"


def test_a_worker_that_ends_says_why():
    with (
        workers.Worker(workers.side("nowhere:nothing")) as worker,
        pytest.raises(workers.WorkerFailed, match="nowhere"),
    ):
        worker.ready()


def test_mnist_that_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_LAB_DATA", str(tmp_path))
    for part in (parts.training, parts.evaluation, parts.logging):
        assert parts.NO_MNIST in list(part(quick=True))


def test_the_shares_are_of_the_whole_run_and_may_be_missing(monkeypatch):
    spent = {"training": 90.0, "validation": 4.0, "pictures": 5.0, "checkpoints": 1.0}
    monkeypatch.setattr(parts, "default_runs", lambda repeats: ([20.0], [{"seconds_in": spent}]))
    row, note = parts.shares(quick=True)
    assert row.ratio == pytest.approx(0.06) and row.reached is False
    assert note.text == "pictures 5.00 s, checkpoints 1.00 s, last_pictures 0.00 s (these after the last epoch)"
    monkeypatch.setattr(parts, "default_runs", lambda repeats: ([20.0], [{}]))
    (note,) = parts.shares(quick=True)
    assert "seconds_in" in note.text


def test_the_peak_of_a_gpu_is_known_by_its_name_or_not_at_all():
    assert gpu.peak_of("NVIDIA H100 80GB HBM3") == gpu.peak_of("NVIDIA H200") == 989e12
    assert gpu.peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert gpu.peak_of("NVIDIA H100 PCIe") is None and gpu.peak_of("NVIDIA L4") is None


def test_the_machine_is_told_in_json(monkeypatch):
    monkeypatch.setattr(machine, "once", lambda side: {"threads": 2, "device": None})
    told = machine.machine()
    assert told["threads"] == 2 and told["versions"]["torch"] and told["cpu"] and told["date"]
    json.dumps(told)


def test_the_benchmark_explains_itself_and_refuses_a_part_that_there_is_not(tmp_path):
    script = str(ROOT / "scripts" / "benchmark.py")
    shown = run(script, "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "--quick" in shown.stdout and "training, evaluation, startup" in shown.stdout
    refused = run(script, "trainings", cwd=tmp_path)
    assert refused.returncode == 2 and "no part trainings: expected training, " in refused.stderr


def test_a_quick_part_through_the_command_line(tmp_path):
    done = run(str(ROOT / "scripts" / "benchmark.py"), "startup", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a bare Hydra app's" in done.stdout and "at most 1.5" in done.stdout
    assert "startup: left out by --quick: command to first step" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_no_phase_took_is_the_rest():
    spent = {"step": 10.0, "batch": 1.0, "forward": 4.0, "encoder": 1.0, "decoder": 2.0, "backward": 3.0}
    phases = profile.completed(spent)
    assert phases["posterior and sample"] == 1.0 and phases["rest"] == 2.0 and phases["objective"] == 0.0


def test_a_profile_shows_phases_operators_and_both_speeds(command, tmp_path):
    trace = tmp_path / "trace.json"
    done = command("data=digits", "--steps", "3", "--trace", str(trace), module="scripts.profile")
    assert done.code == 0, done.stderr
    for name in (*profile.PHASES, "the step alone", "inside the trainer", "aten::", "Speed on cpu"):
        assert name in done.stdout, name
    labels = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"step: forward", "step: encoder", "step: backward", "step: optimiser"} <= labels
    lines = [line.split("│") for line in done.stdout.splitlines() if "│" in line]
    spent = {cells[1].strip(): int(cells[2].replace(",", "")) for cells in lines if cells[3].strip().endswith("%")}
    assert all(spent[name] > 0 for name in profile.PHASES if name != "rest")  # every wrapper is called
    assert spent["rest"] < spent["step"]
    assert not (tmp_path / "outputs").exists()


def test_a_profile_refuses_a_wrong_override(command):
    done = command("data=digitz", module="scripts.profile")
    assert done.code == 2 and done.stderr.startswith("error: data=digitz") and "digits" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_profile_explains_itself(tmp_path):
    shown = run(str(ROOT / "scripts" / "profile.py"), "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "--trace FILE" in shown.stdout and "model=conv data=mnist" in shown.stdout


def test_flags_of_a_profile_may_stand_among_the_overrides(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["profile.py", "model=conv", "--steps", "7", "data=mnist"])
    arguments = profile.parsed()
    assert isinstance(arguments, argparse.Namespace)
    assert arguments.steps == 7 and arguments.overrides == ["model=conv", "data=mnist"]


def test_the_picture_has_a_panel_for_each_network(tmp_path):
    rows = [
        compared(what, [90.0, 110.0], "bare", [50.0, 60.0], Wanted("at least"), "images/s")._replace(part="training")
        for what in ("mlp", "conv")
    ]
    machine = {"cpu": "a processor", "threads": 2}
    assert write_picture(tmp_path / "one.png", rows[:1], machine) and write_picture(tmp_path / "two.png", rows, machine)
    one, two = (Image.open(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two.height > 1.5 * one.height


def test_no_picture_without_a_speed_of_training(tmp_path):
    row = compared("--help", [1.0], "hydra", [1.0], Wanted("at most"), "s")._replace(part="startup")
    assert not write_picture(tmp_path / "none.png", [row], {"cpu": "", "threads": 1})
    assert not (tmp_path / "none.png").exists()


def test_methods_are_measured_and_drawn_from_their_runs(fast_run):
    from scripts.methods import drawing, epochs_of, measured, table
    from vae_lab.figures.canvas import render

    row = measured("vae", fast_run.run, num_images=20, num_samples=5)
    assert row.metrics == fast_run.summary["metrics"] and epochs_of(fast_run.run) == 2
    assert row.iw_elbo < 0
    assert [len(column._cells) for column in table([row, row], 20, 5).columns] == [2] * 6
    height, width, _ = render(drawing({"vae": fast_run.run, "again": fast_run.run}, "title")).shape
    assert width > height > 100

"""scripts/: the arithmetic and the tables of the benchmark on made-up numbers, and its commands as users run them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts import benchmark, methods, reproduce
from scripts.benchmark import Row, compared
from vae_lab.inference import load

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(script, *argv, cwd, seconds=240):
    command = [sys.executable, str(SCRIPTS / script), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)


def test_a_ratio_is_the_median_of_the_pairs_ratios_not_the_ratio_of_the_medians():
    row = compared("a", [10.0, 30.0, 20.0], "b", [10.0, 10.0, 40.0])
    assert row == Row("a", 20.0, "b", 10.0, 1.0, "images/s", [10.0, 30.0, 20.0], [10.0, 10.0, 40.0])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        compared("a", [1.0], "b", [1.0, 2.0])


def test_the_first_epoch_is_a_warm_up():
    clock = benchmark.Clock(100)
    clock.rates = [1.0, 30.0, 10.0, 20.0]
    assert clock.rate == 20.0
    clock.rates = [1.0]
    assert clock.rate == 1.0


def test_a_row_that_fails_or_lacks_its_data_leaves_the_others(monkeypatch, tmp_path, capsys):
    def fails(repeats, quick):
        raise benchmark.ProcessError("ended with 1")

    row = compared("--help", [1.0] * 3, "hydra", [2.0] * 3, "s")
    monkeypatch.setattr(benchmark, "DATA", tmp_path)
    monkeypatch.setattr(benchmark, "ROWS", {"grey-1": fails, "folder": fails, "help": lambda repeats, quick: [row]})
    assert benchmark.main(["--json", str(tmp_path / "out.json")]) == 1
    table = capsys.readouterr().out
    assert "│ --help │ 1       │ hydra  │ 2     │ 0.50  │ s    │" in table
    assert "grey-1: left out, since VAE_LAB_DATA holds no MNIST" in table and "folder: failed: ended with 1" in table
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["rows"] == [row._asdict()] and len(content["notes"]) == 2 and "torch" in content["versions"]
    assert benchmark.main(["help"]) == 0


def test_a_row_that_there_is_not_is_refused(capsys):
    for wrong in (["mlp"], ["--json", "/nowhere/out.json"]):
        with pytest.raises(SystemExit, match="2"):
            benchmark.main(wrong)
    errors = capsys.readouterr().err
    assert "no row mlp: expected grey-1, grey-2" in errors and "there is no folder /nowhere" in errors


def test_the_other_side_computes_the_same_bound(fast_run):
    lab, x = load(fast_run.run), torch.rand(8, 1, 28, 28).round()
    torch.manual_seed(0)
    ours = lab.log_likelihood(x, 512).mean()
    theirs = benchmark.bare_bound(lab.model.encoder, lab.model.decoder, x, 512).mean()
    assert abs(ours - theirs) < 0.02 * abs(ours)


def test_methods_are_measured_and_drawn_from_their_runs(fast_run, tmp_path):
    name, *values, seconds = methods.cells("vae", fast_run.run, num_images=20, num_samples=5)
    elbo, log_px, kl, bound = map(float, values)
    assert name == "vae" and elbo == round(fast_run.summary["metrics"]["test/elbo"], 2) and float(seconds) > 0
    assert abs(elbo - log_px + kl) < 0.02 and bound < 0
    height, width, _ = methods.drawing({"vae": fast_run.run, "again": fast_run.run}, "title").pixels().shape
    assert width > height > 100
    methods.write_strip(fast_run.run, tmp_path / "strips/vae.png")
    assert Image.open(tmp_path / "strips/vae.png").size == (29 * 10 + 1, 29 * 3 + 1)


def test_reference_rows_are_measured_once_and_stand_in_the_page_beside_earlier_ones(monkeypatch, tmp_path, capsys):
    ran = []

    def command(module, words):
        ran.append(module)
        run = Path(words[-1].removeprefix("hydra.run.dir=") if module == "train" else words[0])
        run.mkdir(parents=True, exist_ok=True)
        seed = int(run.name.partition("=")[2] or 0)
        summary = {"status": "completed", "seconds": 120, "epochs": 3, "device": "cpu"}
        rows = {"likelihood": {"iw_elbo_5000": {"value": -90.0, "stderr": 0.5}},
                "disentanglement": {"mig_sampled": {"value": 0.1 * seed, "stderr": None}}}  # fmt: skip
        name, content = ("summary", summary) if module == "train" else ("evaluation", rows)
        (run / f"{name}.json").write_text(json.dumps(content))

    monkeypatch.setattr(reproduce, "command", command)
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{reproduce.BEGIN}\n| `ladder` | kept |\n{reproduce.END}\n\nafter\n")
    argv = ["reproduce.py", "shapes_vae", "vae", "--runs", str(tmp_path / "runs"), "--out", str(page)]
    monkeypatch.setattr(sys, "argv", argv)
    reproduce.main()
    assert ran == ["train"] * 5 + ["evaluate"] * 5 + ["train", "evaluate"]
    first = page.read_text()
    assert first.startswith("# Results\n\n") and first.endswith(f"{reproduce.END}\n\nafter\n")
    assert [line.split("`")[1] for line in first.splitlines() if "`" in line] == [
        "vae",
        "ladder",
        "ladder_large",
        "shapes_vae",
    ]
    assert "| not run yet: `python scripts/reproduce.py ladder_large` | | a GPU |" in first
    assert "| 86.4, arXiv:1509.00519 | **90.00** ± 0.50 | 2 min, 3 epochs |" in first
    assert "| **0.200** ± 0.196 | 2 min each, 3 epochs |" in first  # 2.776 * 0.1581 / sqrt(5)
    reproduce.main()
    assert len(ran) == 12 and page.read_text() == first
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "vea"])
    with pytest.raises(SystemExit, match="2"):
        reproduce.main()
    assert "vea: expected some of vae, iwae" in capsys.readouterr().err

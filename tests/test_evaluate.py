"""`python -m vae_lab.evaluate` as a user runs it."""

import json
import shutil

import numpy as np
import pytest
from helpers.commands import QUIET
from helpers.data import FAST
from helpers.refusals import refused
from helpers.torchrun import torchrun
from torch import nn

from vae_lab import load

EVALUATE = {"module": "vae_lab.evaluate"}
LIKELIHOOD = ("evaluation.likelihood.num_samples=20", "evaluation.likelihood.num_images=50")
SMALL = (*LIKELIHOOD, "evaluation.quality.num_images=60", "evaluation.quality.features=random")


@pytest.fixture
def run(fast_run, tmp_path):
    return shutil.copytree(fast_run.run, tmp_path / "run")


def test_every_number_has_its_protocol_and_twice_gives_the_same_bytes(run, command):
    annealing = ("evaluation.likelihood.ais.num_steps=5", "evaluation.likelihood.ais.num_images=20")
    done = command(str(run), *SMALL, *annealing, "evaluation.against=digits", **EVALUATE)
    assert done.code == 0, done.stderr
    found = json.loads((run / "evaluation.json").read_text())
    sections = ("likelihood", "baseline", "anomaly", "reconstruction", "representation", "disentanglement")
    sections = (*sections, "samples", "cost")
    assert list(found) == ["protocol", *sections]
    assert {"split", "binarize", "seed", "precision", "checkpoint", "step", "versions"} <= found["protocol"].keys()
    assert found["protocol"]["run_status"] == "completed"
    for section in sections:
        for name, row in found[section].items():
            assert (row["value"] is None) == ("reason" in row), name
            assert row["value"] is None or name in done.stdout
    elbo, bound = found["likelihood"]["elbo"], found["likelihood"]["iw_elbo_20"]
    assert elbo["stderr"] > 0 and bound["protocol"]["K"] == 20 and bound["protocol"]["images"] == 50
    assert found["anomaly"]["auroc"]["value"] == 0.5  # against its own images
    weights = [part.weight.numel() for part in load(run).model.modules() if isinstance(part, nn.Linear)]
    assert found["cost"]["multiply_adds"]["value"] == sum(weights)
    assert (run / "images" / "nearest_training_images.png").read_bytes().startswith(b"\x89PNG")
    arrays = np.load(run / "evaluation.npz")
    assert arrays["elbo"].mean() == pytest.approx(elbo["value"]) and arrays["iw_elbo_20"].shape == (50,)
    assert "mig and 8 more" in done.stdout and "the data have no known factors" in done.stdout
    before = [(run / name).read_bytes() for name in ("evaluation.json", "evaluation.npz")]
    assert command(str(run), *SMALL, *annealing, "evaluation.against=digits", **EVALUATE).code == 0
    assert [(run / name).read_bytes() for name in ("evaluation.json", "evaluation.npz")] == before


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_as_one(run, command, tmp_path):
    """50 images in blocks of 10 for the bound, 180 of 100 for the ELBO, one of annealing: none counts twice."""
    annealing = ("evaluation.likelihood.ais.num_steps=5", "evaluation.likelihood.ais.num_images=20")
    words = [str(run), *SMALL, *annealing, "evaluation.against=digits"]
    done = command(*words, **EVALUATE)
    assert done.code == 0, done.stderr
    files = [run / name for name in ("evaluation.json", "evaluation.npz", "images/nearest_training_images.png")]
    alone = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    codes, said = torchrun("vae_lab.evaluate", words, tmp_path)
    assert codes == [0, 0], said
    assert [file.read_bytes() for file in files] == alone
    codes, said = torchrun("vae_lab.evaluate", [str(run), "evaluation.split=tests"], tmp_path)
    assert codes == [2, 2] and "evaluation.split=tests" in said[0] and "error" not in said[1]


def test_parts_measured_before_stay_unless_something_else_is_measured(run, command):
    parts = ("evaluation.quality=null", "evaluation.representation=null", "evaluation.cost=false")
    assert command(str(run), *LIKELIHOOD, *parts, **EVALUATE).code == 0
    first = json.loads((run / "evaluation.json").read_text())
    less = (*parts, "evaluation.likelihood=null", "evaluation.baseline=false", "evaluation.against=digits")
    assert command(str(run), *less, **EVALUATE).code == 0
    both = json.loads((run / "evaluation.json").read_text())
    assert both["likelihood"] == first["likelihood"] and "anomaly" in both
    assert "iw_elbo_20" in np.load(run / "evaluation.npz")
    assert command(str(run), *less, "seed=1", **EVALUATE).code == 0
    other = json.loads((run / "evaluation.json").read_text())
    assert "likelihood" not in other and other["protocol"]["seed"] == 1
    assert "iw_elbo_20" not in np.load(run / "evaluation.npz")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("evaluation.likelihood.num_samples=0",), ("evaluation.likelihood.num_samples=0", "at least 1")),
        (("evaluation.likelihood.ais.num_leapfrog=0",), ("ais.num_leapfrog=0", "at least 1")),
        (("evaluation.likelihood.num_images=0",), ("likelihood.num_images=0", "at least 1")),
        (("evaluation.split=tests",), ("evaluation.split=tests", "train, val, test")),
        (("evaluation.quality.features=inceptoin",), ("features=inceptoin", "flips")),
        (("checkpoint=newest",), ("newest.ckpt",)),
        (("evaluation=fast",), ("evaluation", "quick")),
        (("data.root=/nowhere",), ("data.root", "reads no root")),
        ((".",), ("expected one run",)),
    ],
)
def test_wrong_requests(run, command, argv, words):
    refused(command(str(run), *argv, cwd=run, **EVALUATE), *words)
    assert not (run / "evaluation.json").exists()


def test_known_factors_are_scored_and_what_does_not_fit_is_refused(command):
    shapes = ("data=shapes", "data.image_size=16", "data.num_scales=1", "data.num_orientations=2",
              "data.num_positions=4", "data.val_size=10", "data.test_size=60")  # fmt: skip
    trained = command(*shapes, "model=mlp", *QUIET)
    assert trained.code == 0, trained.stderr
    small = ("evaluation.likelihood=null", "evaluation.quality=null", "evaluation.cost=false")
    done = command(str(trained.run), *small, **EVALUATE)
    assert done.code == 0, done.stderr
    found = json.loads((trained.run / "evaluation.json").read_text())["disentanglement"]
    assert len(found) == 9 and found["mig"]["value"] is not None
    assert found["mig"]["protocol"] == {"images": 60, "factors": 4, "codes": "point estimates"}  # one scale
    refused(command(str(trained.run), *small, "evaluation.against=digits", **EVALUATE), "against=digits", "(1, 28, 28)")
    refused(command(str(trained.run), *small, "evaluation.against=digts", **EVALUATE), "digts", "digits")


def test_an_unfinished_run_is_evaluated_and_called_so(run, command):
    (run / "summary.json").unlink()
    parts = ("evaluation.quality=null", "evaluation.representation=null", "evaluation.cost=false")
    done = command(str(run), *SMALL, *parts, "checkpoint=last", **EVALUATE)
    assert done.code == 0, done.stderr
    found = json.loads((run / "evaluation.json").read_text())
    assert found["protocol"]["run_status"] == "unfinished" and found["protocol"]["checkpoint"] == "last"
    assert "samples" not in found


def test_a_model_without_a_bound_says_which_part_has_no_density(command):
    trained = command("experiment=ae", "data=digits", *FAST)
    assert trained.code == 0, trained.stderr
    done = command(str(trained.run), *SMALL, **EVALUATE)
    assert done.code == 0, done.stderr
    found = json.loads((trained.run / "evaluation.json").read_text())
    assert "has no density" in found["likelihood"]["elbo"]["reason"]
    assert found["likelihood"]["distortion"]["value"] > 0 and found["samples"]["fid"]["value"] is None


def test_codes_are_scored_where_the_factors_are_known(command):
    drawn = ("data=shapes", "data.num_scales=2", "data.num_orientations=4", "data.num_positions=4")
    trained = command(*FAST, *drawn, "data.image_size=16", "data.val_size=20", "data.test_size=200")
    assert trained.code == 0, trained.stderr
    parts = (
        "evaluation.likelihood=null",
        "evaluation.quality=null",
        "evaluation.cost=false",
        "evaluation.baseline=false",
    )
    done = command(str(trained.run), *parts, **EVALUATE)
    assert done.code == 0, done.stderr
    found = json.loads((trained.run / "evaluation.json").read_text())
    scores = {name: row["value"] for name, row in found["disentanglement"].items()}
    assert len(scores) == 9 and all(0 <= value <= 1 for value in scores.values())
    assert found["representation"]["knn_accuracy"]["reason"] == "the data have no labels"

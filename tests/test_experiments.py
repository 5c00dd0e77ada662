"""Every experiment file: short, right against the code it names, and it runs."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from helpers.commands import Command
from helpers.data import FAST, write_data_root
from helpers.steps import composed
from omegaconf import OmegaConf

from vae_lab.config.safety import require_harmless
from vae_lab.config.validation import check_targets
from vae_lab.core import ImageSpec
from vae_lab.training.build import build_module, build_node
from vae_lab.training.step import TrainingStep, term_names

FOLDER = Path(__file__).parents[1] / "conf" / "experiment"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [file.stem for file in FILES]
REPLICAS = {
    "replica_mnist_conv",
    "replica_mnist_cvae",
    "replica_mnist_mlp",
    "replica_mnist_tanh_mse",
    "replica_pokemon_keras",
}
MOST_LINES = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with 70,000 images in MNIST's files, every 100th of them not blank, and 40 pictures in pokemon."""
    return write_data_root(tmp_path_factory.mktemp("data"))


def test_the_reproduced_tutorials_are_there():
    assert set(NAMES) >= REPLICAS


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_is_short_and_says_what_it_is(file):
    lines = file.read_text().splitlines()
    assert len(lines) <= MOST_LINES
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ") and len(lines[1]) > 30
    if file.stem.startswith("replica_"):
        assert any("rror in the original" in line or "rrors in the original" in line for line in lines[1:4])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_only_what_exists(name):
    config = composed(f"experiment={name}", "data.root=data")
    check_targets(config)
    require_harmless(config, Path("config.yaml"))  # so that a run of it loads without being trusted


SAID = ("latent_dim", "lr:", "max_epochs", "batch_size")  # by some of the files, and by the command line below


@pytest.mark.parametrize("name", [file.stem for file in FILES if any(key in file.read_text() for key in SAID)])
def test_the_command_line_wins_over_the_file(name):
    overrides = ["model.latent_dim=7", "optimizer.lr=0.25", "trainer.max_epochs=3", "data.batch_size=5"]
    config = composed(f"experiment={name}", *overrides)
    assert config.model.latent_dim == 7 and config.optimizer.lr == 0.25
    assert config.trainer.max_epochs == 3 and config.data.batch_size == 5


def given_keys(node: dict, where: str = "") -> list[tuple[str, object]]:
    """The leaves of a file, `defaults` left out; a part with a `_target_` counts as one."""
    found = []
    for key, value in node.items():
        if key == "defaults":
            continue
        inner = isinstance(value, dict) and "_target_" not in value
        found += given_keys(value, f"{where}{key}.") if inner else [(f"{where}{key}", value)]
    return found


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_is_a_difference(file):
    """Each key says something that the config does not say without it."""
    content = yaml.safe_load(file.read_text())
    choices = [f"{key.removeprefix('override /')}={value}" for entry in content.get("defaults", [])
               for key, value in entry.items()]  # fmt: skip
    select = OmegaConf.select
    without = composed(*choices, "data.root=data")
    wanted = composed(f"experiment={file.stem}", "data.root=data")
    said_anyway = [key for key, _ in given_keys(content) if select(wanted, key) == select(without, key)]
    assert said_anyway == []


METHODS = [name for name in NAMES if "pokemon" not in name]
DIGIT = ImageSpec(1, 28, 28, num_classes=10)


class Gradients(torch.optim.SGD):
    """An optimiser that remembers which parameters ever got a gradient."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.reached = set()

    def step(self, closure=None):
        for group in self.param_groups:
            self.reached |= {p for p in group["params"] if p.grad is not None and p.grad.any()}
        return super().step(closure)


def steps_of(name: str, count: int):
    """An experiment after some steps on a few random images, and what each step measured."""
    config = composed(f"experiment={name}", "data.root=data")
    data = build_node(config.data)
    levels = 256 if data.preprocess.binarize == "none" else 2
    settings = dataclasses.replace(build_node(config.optimizer), algorithm=Gradients, lr=1e-3)
    experiment = build_module(config, data, dataclasses.replace(DIGIT, levels=levels), 100, settings).train()
    step = TrainingStep(
        experiment.model,
        experiment.objective,
        experiment.preprocess,
        experiment.configure_optimizers(),
        settings,
        batch_size=128,
        total_steps=count,
        seed=0,
    )
    images = torch.randint(0, 256, (6, *DIGIT.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return step, [step(images, number, labels=torch.arange(6)) for number in range(count)]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_every_parameter_receives_a_gradient(name):
    """At the second step at the latest: what starts at zero hides what lies before it."""
    step, records = steps_of(name, 2)
    assert all(record.terms.isfinite().all() and not record.nonfinite for record in records)
    assert len(records[0].terms) == len(term_names(step.objective))
    names = {p: key for part in (step.model, step.objective) for key, p in part.named_parameters() if p.requires_grad}
    assert [key for p, key in names.items() if p not in step.optimizer.reached] == []


@pytest.mark.parametrize(
    "name", ["replica_mnist_cvae", "replica_mnist_tanh_mse", "replica_pokemon_keras", "factor_vae"]
)
def test_it_runs(name, command: Command, root):
    pictures = () if name == "replica_mnist_cvae" else ("callbacks.images=null",)
    done = command(f"experiment={name}", *FAST, f"data.root={root}", *pictures, "trainer.max_epochs=1")
    assert done.code == 0, done.stderr[-3000:]
    assert done.summary["status"] == "completed"
    assert done.run.parent.name == name
    assert done.summary["steps"] == 3
    assert done.summary["metrics"]["test/elbo"] < 0
    assert (done.run / "images/samples_epoch=0001.png").exists() is not bool(pictures)


def test_a_part_that_a_file_chose_can_be_left_out(command, root):
    """The options that the file set for it stay behind, and do no harm."""
    left_out = ("second_stage=null", "objective.regularizers.commitment=null", "trainer.max_epochs=1")
    done = command("experiment=vq_vae", *FAST, f"data.root={root}", "callbacks.images=null", *left_out)
    assert done.code == 0, done.stderr[-3000:]
    assert not (done.run / "prior").exists() and "train/commitment" not in (done.run / "metrics.csv").read_text()

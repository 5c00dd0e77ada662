"""Every experiment file: short, right against the code it names, and it runs."""

import dataclasses
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.commands import QUIET, Command
from helpers.data import write_data_root
from helpers.steps import composed
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vae_lab.config.safety import require_harmless
from vae_lab.config.validation import check_targets
from vae_lab.core import ImageSpec
from vae_lab.metrics.importance import importance_bound
from vae_lab.models.base import parts_without_density
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


@pytest.mark.parametrize("name", ["beta_vae", "vq_vae", "replica_pokemon_keras"])
def test_the_command_line_wins_over_the_file(name):
    config = composed(f"experiment={name}", "optimizer.lr=0.25", "trainer.max_epochs=3", "data.batch_size=5")
    assert (config.optimizer.lr, config.trainer.max_epochs, config.data.batch_size) == (0.25, 3, 5)


METHODS = [name for name in NAMES if "pokemon" not in name]
DIGIT = ImageSpec(1, 28, 28, num_classes=10)


def module_of(config, data, image, settings=None):
    """The module of an experiment, for images of another shape than its own data's perhaps."""
    levels = 256 if data.preprocess.binarize == "none" else 2
    image = dataclasses.replace(image, levels=levels)
    return build_module(config, data, image, 1000, settings or build_node(config.optimizer))


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
    settings = dataclasses.replace(build_node(config.optimizer), algorithm=Gradients, lr=1e-3)
    experiment = module_of(config, build_node(config.data), DIGIT, settings).train()
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


@pytest.mark.parametrize("name", ["replica_mnist_cvae", "replica_pokemon_keras", "factor_vae"])
def test_it_runs(name, command: Command, root):
    small = ("data.batch_size=4", "data.eval_batch_size=4", "trainer.max_epochs=1", "second_stage=null")
    done = command(f"experiment={name}", *QUIET, f"data.root={root}", *small)
    assert done.code == 0, done.stderr[-3000:]
    assert done.summary["status"] == "completed"
    assert done.run.parent.name == name
    assert done.summary["steps"] == 3
    assert done.summary["metrics"]["test/elbo"] < 0


def test_a_part_that_a_file_chose_can_be_left_out(command, root):
    """The options that the file set for it stay behind, and do no harm."""
    left_out = ("second_stage=null", "objective.regularizers.commitment=null", "trainer.max_epochs=1")
    done = command("experiment=vq_vae", *QUIET, f"data.root={root}", *left_out)
    assert done.code == 0, done.stderr[-3000:]
    assert not (done.run / "prior").exists() and "train/commitment" not in (done.run / "metrics.csv").read_text()


# --- as a GPU would see it --------------------------------------------------------------------------------

CUDA = torch.device("cuda", 0)


def move(module: nn.Module, mode: FakeTensorMode) -> None:
    """Give the module fake parameters and buffers on a GPU; `Module.to` would need one."""

    def fake(tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)

    with mode:
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = nn.Parameter(fake(weight), weight.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = fake(buffer)


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_stays_behind_on_the_cpu_and_nothing_is_read_back_within_a_step(name, monkeypatch):
    """Fake tensors have a device and a shape but no memory; their kernels refuse two devices and `.item()`.

    Autograd wants a real device, so the backward pass is left out.
    """
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # autocast without a GPU
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    config = composed(f"experiment={name}", "data.root=data")
    data = build_node(config.data)
    image = ImageSpec(3, 128, 128) if "pokemon" in name else DIGIT
    module = module_of(config, data, image)
    model, objective, mode = module.model, module.objective, FakeTensorMode()
    move(module, mode)
    with mode:
        images = torch.zeros(4, *model.image.shape, dtype=torch.uint8, device=CUDA)
        y = torch.zeros(4, dtype=torch.long, device=CUDA) if model.conditional else None
        x = module.preprocess.train(images)
        with torch.autocast("cuda", torch.bfloat16):
            trace = model(module.preprocess.corrupt(x), objective.num_samples, y)
            inputs = model.regularizer_inputs(trace, x, y)
            losses, _ = objective(inputs, objective.terms(trace, x), objective.weights_at(1, 10))
            objective.discriminator_loss(inputs)
        assert losses.device == CUDA and losses.dtype == torch.float32
        module.eval()
        with torch.no_grad():
            with suppress(NotImplementedError):  # a flat prior
                assert model.sample(4, y).mean.device == CUDA
            assert model.reconstruct(x, y).mean.device == CUDA
            if not parts_without_density(model):
                assert importance_bound(model, x, 4, y=y).device == CUDA

"""Small models, and single training steps of them."""

import functools

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae_lab.config.schema import conf_dir
from vae_lab.core import ImageSpec
from vae_lab.data.transforms import Preprocess
from vae_lab.objectives.bounds import elbo
from vae_lab.objectives.objective import Objective
from vae_lab.objectives.schedules import Constant
from vae_lab.runs.run_dir import register_with_hydra
from vae_lab.training.build import build_model
from vae_lab.training.optimizer import OptimizerSettings
from vae_lab.training.step import TrainingStep

BATCH = 8
IMAGE = ImageSpec(1, 8, 8, 256)
SMALL_MLP = ("model=mlp", "model.latent_dim=3", "model.encoder.hidden=[16]", "model.decoder.hidden=[16]")
STATEFUL = (
    "model=spatial", "model/posterior=nearest_code", "model/prior=uniform_codes", "model.latent_dim=4",
    "model.encoder.width=8", "model.decoder.width=8", "model.posterior.num_codes=8",
    "objective/constraint=geco", "objective/regularizers=[commitment,perceptual]",
)  # fmt: skip


@functools.cache
def composed(*overrides: str):
    register_with_hydra()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", list(overrides))
    OmegaConf.set_readonly(config, True)
    return config


def model_of(*overrides: str, image: ImageSpec = IMAGE, seed: int = 0):
    torch.manual_seed(seed)
    return build_model(composed(*overrides), image)


def small_model():
    return model_of(*SMALL_MLP, "model/likelihood=gaussian_fixed")


class Recorder(torch.optim.SGD):
    """An optimiser that remembers what it was given."""

    def __init__(self, parameters, lr=1.0):
        super().__init__(parameters, lr=lr)
        self.gradients, self.rates = [], []

    def step(self, closure=None):
        (group,) = self.param_groups
        self.gradients.append([None if p.grad is None else p.grad.clone() for p in group["params"]])
        self.rates.append(group["lr"])
        return super().step()


def step_of(model, *, algorithm=Recorder, batch_size=BATCH, preprocess=None, objective=None, **options):
    names = {"lr", "schedule", "clip_norm", "accumulate", "ema_decay"}
    chosen = {"lr": 0.0} | {name: options.pop(name) for name in names & options.keys()}
    settings_ = OptimizerSettings(algorithm, **chosen)
    objective = objective or Objective(elbo, Constant())
    options = {"total_steps": 10, "seed": 0} | options
    return TrainingStep(model, objective, preprocess or Preprocess(), settings_.build(model.parameters()), settings_,
                        batch_size, **options)  # fmt: skip


def images_of(count: int, image: ImageSpec = IMAGE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *image.shape), generator=generator, dtype=torch.uint8)


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]

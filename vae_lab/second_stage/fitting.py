"""Fitting a prior to latents, by its own `fit` or by gradient; and the latent samples it is fitted to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, TransformedDistribution

from vae_lab.core import NO_INPUTS, Codes, LatentSpec, Prior, PriorInputs
from vae_lab.models.base import LabelledBatches
from vae_lab.models.vae import VAE
from vae_lab.objectives.schedules import Cosine
from vae_lab.utils.callables import Track
from vae_lab.utils.errors import RunFailed, UsageError
from vae_lab.utils.rng import FIT, epoch_permutation, mix, seed_noise

# Random substreams of the stream FIT.
WEIGHTS, ORDER, NOISE, IMPORTANCE, LATENTS, SAMPLES = range(1, 7)
MIN_SCALE = 1e-6  # for a latent dimension that hardly varies
HELD_OUT_EVERY = 20  # without validation images, every 20th training image is held out
SCORING_BATCH = 2000


@dataclass(frozen=True)
class LatentSamples:
    """Samples of q(z|x) of many images; codes are stored as indices, which take a fraction of the memory."""

    values: Tensor  # (N, *event), or int64 (N, *code_shape)
    codes: Codes | None = None

    def __len__(self) -> int:
        return len(self.values)

    def z(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Latents of these rows, (n, *event)."""
        chosen = self.values[rows]
        return chosen if self.codes is None else self.codes.embed(chosen)

    def split_held_out(self, samples_per_image: int) -> tuple[LatentSamples, LatentSamples]:
        """Split off the samples of every twentieth image: (the others, the held-out ones)."""
        images = torch.arange(len(self), device=self.values.device) // samples_per_image
        held_out = images % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        return LatentSamples(self.values[~held_out], self.codes), LatentSamples(self.values[held_out], self.codes)


@torch.no_grad()
def sample_posteriors(model: VAE, images: LabelledBatches, samples_per_image: int, *seed: int) -> LatentSamples:
    """Samples of q(z|x), those of one image adjacent. seed: a stream of random numbers used for nothing else."""
    codes = model.posterior.codes
    parts = []
    for number, (x, y) in enumerate(images):
        seed_noise(x.device, *seed, number)
        z = model.encode(x, y).sample(torch.Size((samples_per_image,))).transpose(0, 1).flatten(0, 1)
        parts.append(z if codes is None else codes.indices(z))
    return LatentSamples(torch.cat(parts), codes)


class StandardizedPrior(Prior):
    """z = mean + scale u with u from another prior, which is thus fitted to latents of mean 0 and scale 1.

    For a prior that starts near N(0, I) and is fitted by gradient. The density is exact: torch subtracts the sum of the
    log scales. mean and scale: of the latents given to `adapt`; 0 and 1 before.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, latent: LatentSpec, prior: Callable[[LatentSpec], Prior]) -> None:
        super().__init__()
        self.prior = prior(latent)
        self.register_buffer("mean", torch.zeros(latent.shape))
        self.register_buffer("scale", torch.ones(latent.shape))

    @torch.no_grad()
    def adapt(self, z: Tensor) -> None:
        """Set mean and scale to those of each dimension of latents (N, *shape)."""
        self.mean.copy_(z.mean(0))
        self.scale.copy_(z.std(0, correction=0).clamp(min=MIN_SCALE))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), with the batch of the inner prior."""
        to_latents = AffineTransform(self.mean, self.scale, event_dim=self.mean.dim())
        return TransformedDistribution(self.prior(inputs), [to_latents], validate_args=False)


class FittingTask(NamedTuple):
    """A prior to fit, which is given the codes, but neither labels nor images."""

    prior: Prior
    latents: LatentSamples
    held_out: LatentSamples  # for model selection and scores
    seed: int
    track: Track

    def log_prob(self, latents: LatentSamples, rows: Tensor | slice = slice(None)) -> Tensor:
        """log p(z) of latents in nats, (n,); for codes a log probability mass."""
        log_prob: Tensor = self.prior(PriorInputs(codes=latents.codes)).log_prob(latents.z(rows))
        return log_prob

    @torch.no_grad()
    def mean_log_prob(self, latents: LatentSamples) -> float:
        """Mean of log p(z) over latents, in nats."""
        self.prior.eval()
        rows = torch.arange(len(latents), device=latents.values.device).split(SCORING_BATCH)
        return float(torch.cat([self.log_prob(latents, some) for some in rows]).double().mean())


Fitting = Callable[[FittingTask], None]  # fits a prior in place; UsageError: one that it cannot fit


class DirectFit:
    """Fit by the prior's own `fit`: in closed form or by expectation maximisation. UsageError: a prior without one."""

    def __call__(self, task: FittingTask) -> None:
        if not task.prior.has_fit:
            raise UsageError(
                f"second_stage.fitting: {type(task.prior).__name__} has no fit method\n"
                "use that of second_stage=flow: second_stage.fitting._target_=vae_lab.second_stage.GradientFit"
            )
        for device in {torch.device("cpu"), task.latents.values.device}:
            seed_noise(device, task.seed, FIT, NOISE)
        try:
            task.prior.fit(task.latents.z())
        except ValueError as error:
            raise second_stage_error(error) from error


@dataclass(frozen=True)
class GradientFit:
    """Maximum likelihood with Adam and cosine decay of the learning rate; keeps the best weights on held-out latents.

    The held-out latents are scored at the start and after each epoch. epochs: passes over the latents.
    clip_norm: largest norm of the gradient. ValueError: an option out of its range.
    """

    epochs: int
    batch_size: int
    lr: float
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"second_stage.fitting.{name} is above 0; found {getattr(self, name)}")

    def __call__(self, task: FittingTask) -> None:
        """UsageError: a prior without parameters. RunFailed: non-finite log p(z)."""
        if not any(True for _ in task.prior.parameters()):
            raise UsageError(
                f"second_stage.prior: {type(task.prior).__name__} has no parameters to fit; choose another"
            )
        if isinstance(task.prior, StandardizedPrior):
            task.prior.adapt(task.latents.z())
        optimizer = torch.optim.Adam(task.prior.parameters(), self.lr)
        best, kept = task.mean_log_prob(task.held_out), copy.deepcopy(task.prior.state_dict())
        for epoch in range(self.epochs):
            self._train(task, optimizer, epoch, f"epoch {epoch + 1}/{self.epochs} (held out {best:.2f} nats)")
            score = task.mean_log_prob(task.held_out)
            if not math.isfinite(score):
                raise RunFailed(
                    f"second_stage: log p(z) of held-out latents became {score} in epoch {epoch + 1}\n"
                    f"try a smaller second_stage.fitting.lr (it is {self.lr:g}) or clip_norm ({self.clip_norm:g})"
                )
            if score > best:
                best, kept = score, copy.deepcopy(task.prior.state_dict())
        task.prior.load_state_dict(kept)

    def _train(self, task: FittingTask, optimizer: torch.optim.Optimizer, epoch: int, what: str) -> None:
        device = task.latents.values.device
        order = epoch_permutation(len(task.latents), mix(task.seed, FIT, ORDER), epoch)
        batches = order.to(device).split(self.batch_size)
        task.prior.train()
        for step, rows in enumerate(task.track(batches, what, len(batches)), epoch * len(batches)):
            seed_noise(device, task.seed, FIT, NOISE, step)
            optimizer.param_groups[0]["lr"] = self.lr * Cosine()(step, self.epochs * len(batches))
            optimizer.zero_grad()
            loss = -task.log_prob(task.latents, rows).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(task.prior.parameters(), self.clip_norm)
            optimizer.step()


def second_stage_error(error: ValueError) -> UsageError:
    """The error of a prior, with model.prior in its message replaced by second_stage.prior."""
    return UsageError(str(error).replace("model.prior", "second_stage.prior"))

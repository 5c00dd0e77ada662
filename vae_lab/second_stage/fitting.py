"""Densities fitted to latents: by a prior's own `fit`, or by gradient; and the latents, as they are kept for that."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, TransformedDistribution

from vae_lab.core import NO_INPUTS, Codes, LatentKind, LatentSpec, Prior, PriorInputs
from vae_lab.objectives.schedules import Cosine
from vae_lab.utils.errors import RunFailed, UsageError
from vae_lab.utils.rng import FIT, epoch_permutation, mix, seed_noise

# What is drawn for a fit, and afterwards: each a part of the stream FIT.
WEIGHTS, ORDER, NOISE, IMPORTANCE, LATENTS, SAMPLES = range(1, 7)
CPU = torch.device("cpu")
SMALLEST_SCALE = 1e-6  # of a latent that hardly varies
HELD_OUT_EVERY = 20  # without validation images, the latents of every so many-th training image are kept from the fit
SCORING_BATCH = 2000


class ProgressCallback(Protocol):
    """Told after each piece of work: of what, how much is done of how much, and a word on how it goes.

    May raise, to end the work: nothing is lost by that.
    """

    def __call__(self, what: str, done: int, total: int, shown: str = "") -> None:
        """See above."""
        ...


@dataclass(frozen=True)
class LatentSamples:
    """Draws of q(z|x) of many images; where latents are codes, their numbers, which take a fraction of the memory."""

    values: Tensor  # (N, *event), or int64 (N, *code_shape)
    codes: Codes | None = None

    def __len__(self) -> int:
        return len(self.values)

    def z(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """The latents of these rows, (n, *event)."""
        chosen = self.values[rows]
        return chosen if self.codes is None else self.codes.embed(chosen)

    def split_held_out(self, samples_per_image: int) -> tuple[LatentSamples, LatentSamples]:
        """All but those of every twentieth image, and those."""
        images = torch.arange(len(self), device=self.values.device) // samples_per_image
        held_out = images % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        return LatentSamples(self.values[~held_out], self.codes), LatentSamples(self.values[held_out], self.codes)


class Standardized(nn.Module):
    """z = mean + scale u with u from another prior, which then meets latents of mean 0 and scale 1.

    For a prior that starts near N(0, I) and is fitted by gradient. The density is exact: torch adds the log-determinant
    of the map, minus the sum of the log scales. mean and scale: of the latents given to `adapt`; 0 and 1 until then.
    """

    kinds: tuple[LatentKind, ...] = ("vector",)
    mean: Tensor
    scale: Tensor

    def __init__(self, latent: LatentSpec, prior: Callable[[LatentSpec], Prior]) -> None:
        super().__init__()
        self.prior = prior(latent)
        self.register_buffer("mean", torch.zeros(latent.shape))
        self.register_buffer("scale", torch.ones(latent.shape))

    @torch.no_grad()
    def adapt(self, z: Tensor) -> None:
        """Take the mean and the standard deviation of each number of latents (N, *shape)."""
        self.mean.copy_(z.mean(0))
        self.scale.copy_(z.std(0, correction=0).clamp(min=SMALLEST_SCALE))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), the batch of the other prior."""
        to_latents = AffineTransform(self.mean, self.scale, event_dim=self.mean.dim())
        return TransformedDistribution(self.prior(inputs), [to_latents], validate_args=False)


class FittingTask(NamedTuple):
    """A prior to be fitted. It is told of codes, and sees neither labels nor images."""

    prior: nn.Module
    latents: LatentSamples
    held_out: LatentSamples  # to judge by
    seed: int
    report_progress: ProgressCallback

    def log_prob(self, latents: LatentSamples, rows: Tensor | slice = slice(None)) -> Tensor:
        """log p(z) of some latents in nats, (n,); of codes the log of a probability mass."""
        log_prob: Tensor = self.prior(PriorInputs(codes=latents.codes)).log_prob(latents.z(rows))
        return log_prob

    @torch.no_grad()
    def mean_log_prob(self, latents: LatentSamples) -> float:
        """Over all of them."""
        self.prior.eval()
        rows = torch.arange(len(latents), device=latents.values.device).split(SCORING_BATCH)
        return float(torch.cat([self.log_prob(latents, some) for some in rows]).double().mean())


class Fitting(Protocol):
    """How a prior is fitted, in place."""

    def __call__(self, task: FittingTask) -> None:
        """UsageError: a prior that cannot be fitted like this."""
        ...


class DirectFit:
    """By the prior's own `fit`: in closed form, or by expectation maximisation. UsageError: a prior without."""

    def __call__(self, task: FittingTask) -> None:
        """What is held out plays no part."""
        fit = getattr(task.prior, "fit", None)
        if fit is None:
            raise UsageError(
                f"second_stage.fitting: {type(task.prior).__name__} has no fit of its own\n"
                "use that of second_stage=flow: second_stage.fitting._target_=vae_lab.second_stage.fitting.GradientFit"
            )
        for device in {CPU, task.latents.values.device}:
            seed_noise(device, task.seed, FIT, NOISE)
        task.report_progress("fit", 0, 1)
        try:
            fit(task.latents.z())
        except ValueError as error:
            raise as_second_stage_error(error) from error
        task.report_progress("fit", 1, 1)


@dataclass(frozen=True)
class GradientFit:
    """By maximum likelihood with Adam, the learning rate falling by half a cosine; keeps what is best on others.

    Those, the latents held out, are scored at the start and after each epoch. epochs: passes over the latents.
    clip_norm: largest norm of the gradient. ValueError: an option out of its range.
    """

    epochs: int
    batch_size: int
    lr: float
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"second_stage.fitting.{name} is at least 1; found {getattr(self, name)}")
        for name in ("lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"second_stage.fitting.{name} is above 0; found {getattr(self, name)}")

    def __call__(self, task: FittingTask) -> None:
        """UsageError: nothing of the prior is learned. RunFailed: a density that is not finite any more."""
        if not any(True for _ in task.prior.parameters()):
            raise UsageError(f"second_stage.prior: nothing of {type(task.prior).__name__} is learned; choose another")
        if isinstance(task.prior, Standardized):
            task.prior.adapt(task.latents.z())
        optimizer = torch.optim.Adam(task.prior.parameters(), self.lr)
        best, kept = task.mean_log_prob(task.held_out), copy.deepcopy(task.prior.state_dict())
        for epoch in range(self.epochs):
            self._train(task, optimizer, epoch, f"held out {best:.2f} nats")
            score = task.mean_log_prob(task.held_out)
            if not math.isfinite(score):
                raise RunFailed(
                    f"second_stage: log p(z) of latents held out became {score} in epoch {epoch + 1}\n"
                    f"try a smaller second_stage.fitting.lr (it is {self.lr:g}) or clip_norm ({self.clip_norm:g})"
                )
            if score > best:
                best, kept = score, copy.deepcopy(task.prior.state_dict())
        task.prior.load_state_dict(kept)

    def _train(self, task: FittingTask, optimizer: torch.optim.Optimizer, epoch: int, shown: str) -> None:
        device = task.latents.values.device
        batches = (
            epoch_permutation(len(task.latents), mix(task.seed, FIT, ORDER), epoch).to(device).split(self.batch_size)
        )
        total = self.epochs * len(batches)
        task.prior.train()
        for step, rows in enumerate(batches, epoch * len(batches)):
            seed_noise(device, task.seed, FIT, NOISE, step)
            optimizer.param_groups[0]["lr"] = self.lr * Cosine()(step, total)
            optimizer.zero_grad()
            loss = -task.log_prob(task.latents, rows).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(task.prior.parameters(), self.clip_norm)
            optimizer.step()
            task.report_progress("fit", step + 1, total, shown)


def as_second_stage_error(error: ValueError) -> UsageError:
    """What a prior refused; it takes itself for the model's."""
    return UsageError(str(error).replace("model.prior", "second_stage.prior"))

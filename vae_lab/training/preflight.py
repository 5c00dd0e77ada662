"""Checks before training that the model, the objective and the images are compatible."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor

from vae_lab.core import Trace
from vae_lab.data.datamodule import ImageDataModule
from vae_lab.data.images import Split
from vae_lab.likelihoods import ColorGaussian
from vae_lab.models.base import Model, parts_without_density
from vae_lab.objectives.objective import IMPORTANCE_WEIGHTED, Objective, Weights
from vae_lab.utils.errors import UsageError

NUM_CHECKED = 64  # training images
NUM_SCORED = 8
MASK_MAX_VALUE = 3  # of 255: images whose brightest pixel is below it are taken for masks


def check_model(model: Model, objective: Objective, data: ImageDataModule) -> list[str]:
    """Warnings about a model on these images.

    UsageError: log p(x|z) of a training image is not finite, or the objective cannot score the model.
    """
    if model.likelihood.fits_batch:
        _require_shared_scale(type(model.likelihood).__name__, objective, data.batch_size)
    data.setup()
    x, y = next(iter(data.first_images("train", NUM_CHECKED)))
    _require_finite_log_px(
        model, objective, x[:NUM_SCORED], y[:NUM_SCORED] if y is not None and model.conditional else None
    )
    return [
        *_image_warnings(x),
        *_likelihood_warnings(model, x),
        *_latent_warnings(model, objective, data.size("train")),
    ]


def coverage_warnings(trainer: Trainer, data: ImageDataModule, config: DictConfig) -> list[str]:
    """Warnings about missing and partial validations and tests, and fewer devices than requested."""
    found = [] if data.size("val") else ["no validation images: the last weights are used as the best"]
    limits: dict[Split, int | float | None] = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    for split, limit in limits.items():
        if data.size(split) and limit == 0:
            found.append(f"trainer.limit_{split}_batches=0: the {split} split was not evaluated")
        elif data.size(split) and limit not in (None, 1.0):
            if isinstance(limit, float) and limit * math.ceil(data.size(split) / data.eval_batch_size) < 1:
                raise UsageError(
                    f"trainer.limit_{split}_batches={limit}: less than one batch of {data.eval_batch_size} images, of "
                    f"{data.size(split)}\nset a number of batches: trainer.limit_{split}_batches=1"
                )
            found.append(f"trainer.limit_{split}_batches={limit}: {split} metrics do not cover the whole split")
    asked = config.trainer.devices
    if isinstance(asked, int) and trainer.world_size < asked * config.trainer.num_nodes:
        found.append(f"ran on {trainer.world_size} devices, fewer than trainer.devices={asked}")
    return found


def _require_shared_scale(likelihood: str, objective: Objective, batch_size: int) -> None:
    """UsageError: a scale fitted to the batch, with a single image or a bound that compares the samples of an image."""
    if batch_size < 2:
        raise UsageError(
            f"data.batch_size={batch_size}: {likelihood} fits its scale to the batch, so each picture would have a "
            "scale of its own, and in evaluation all have the same.\n"
            "Set data.batch_size=2 or more, or choose model/likelihood=gaussian, whose scale is learned"
        )
    if objective.bound in IMPORTANCE_WEIGHTED:
        raise UsageError(
            f"objective/bound: importance weights need one density for all samples of an image, and {likelihood} fits "
            "its scale to the samples of the batch.\n"
            "Choose model/likelihood=gaussian, whose scale is learned, or objective/bound=elbo"
        )


def _require_finite_log_px(model: Model, objective: Objective, x: Tensor, y: Tensor | None) -> None:
    """UsageError: log p(x|z) is not finite, or a part of the objective does not support the model."""
    modes = model.training, objective.training
    model.eval(), objective.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trace = model(x, objective.num_samples, y)
            _require_shapes(model, trace, x)
            terms = objective.terms(trace, x)
            inputs = model.regularizer_inputs(trace, x, y)
            objective(inputs, terms, Weights())
            objective.discriminator_loss(inputs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    model.train(modes[0]), objective.train(modes[1])
    log_px = terms.log_px
    num_nonfinite = (~log_px.isfinite()).sum().item()
    if num_nonfinite:
        raise UsageError(
            f"model.likelihood: {type(model.likelihood).__name__} gives {num_nonfinite} of the first {len(x)} training "
            f"images no finite log p(x|z) (found {log_px.flatten()[~log_px.flatten().isfinite()][0].item()}).\n"
            f"Their pixels lie in [{x.min():.3g}, {x.max():.3g}]; choose a model/likelihood for such values"
        )


def _require_shapes(model: Model, trace: Trace, x: Tensor) -> None:
    """ValueError: a distribution over something else than images or latents, whose densities would be broadcast."""
    found, batch, event = trace.likelihood, trace.latents[0].z.shape[:2], x.shape[1:]
    if (found.batch_shape, found.event_shape) != (batch, event):
        raise ValueError(
            f"model.likelihood: {type(model.likelihood).__name__} gives a distribution of batch "
            f"{tuple(found.batch_shape)} and event {tuple(found.event_shape)}; "
            f"expected {tuple(batch)} and {tuple(event)}.\n"
            "num_channels are the decoder's outputs per pixel; independent_pixels of vae_lab.likelihoods sets the event"
        )
    for latent in trace.latents:
        for part, distribution in (("posterior", latent.posterior), ("prior", latent.prior)):
            if distribution.event_shape != latent.z.shape[2:]:
                raise ValueError(
                    f"model.{part}: found a distribution of event {tuple(distribution.event_shape)}; expected that of "
                    f"one latent, {tuple(latent.z.shape[2:])}.\nDeclare it, with torch.distributions.Independent"
                )


def _image_warnings(x: Tensor) -> Iterator[str]:
    low, high = round(x.min().item() * 255), round(x.max().item() * 255)
    if low == high:
        yield f"every pixel of the first {len(x)} training images is {low}: check that these are the right pictures"
    elif high < MASK_MAX_VALUE:
        yield (
            f"the brightest pixel of the first {len(x)} training images is {high} of 255: "
            "masks stored as 0 and 1 must be multiplied by 255"
        )


def _likelihood_warnings(model: Model, x: Tensor) -> Iterator[str]:
    colour = (x - x.mean(1, keepdim=True)).abs().max().item()
    if isinstance(model.likelihood, ColorGaussian) and colour < 1 / 255:
        yield (
            "the pictures have no colour, for which gaussian_color spends part of the training: choose "
            "data.channels=1 model/likelihood=gaussian_optimal"
        )
    levels, binary = model.likelihood.levels, bool(((x == 0) | (x == 1)).all())
    if levels == 2 and not binary:
        yield "cross-entropy on grey values is not a likelihood: compare it only with other cross-entropies"
    elif levels is None and binary and not model.likelihood.has_fixed_scale:
        yield (
            "a density of pixels that are only 0 or 1 has no upper bound, so log p(x|z) is not informative: "
            "choose model/likelihood=bernoulli, or data.binarize=none for grey values"
        )
    elif levels is not None and levels > 2 and binary:
        yield f"a likelihood of {levels} levels scores pixels that are only 0 or 1: choose model/likelihood=bernoulli"


def _latent_warnings(model: Model, objective: Objective, num_images: int) -> Iterator[str]:
    no_density = parts_without_density(model)
    if no_density:
        have = "have" if len(no_density) > 1 else "has"
        yield (
            f"elbo is not a bound on log p(x): {' and '.join(no_density)} {have} no density. Compare log_px, or choose "
            "model/posterior=diagonal_gaussian and model/prior=standard_normal"
        )
    codes = any(latent.kind == "codes" for latent in model.latents)
    if objective.bound in IMPORTANCE_WEIGHTED and (no_density or codes):
        yield (
            "importance weights are ratios of densities, which these latents do not have in training: choose "
            "objective/bound=elbo"
        )
    num_codes = max(latent.num_codes or 0 for latent in model.latents)
    if num_codes > num_images:
        fewer = 2 ** max(1, int(math.log2(num_images)) - 2)
        yield (
            f"model.posterior: a codebook of {num_codes} codes is larger than the training set of {num_images} images; "
            f"choose fewer codes, such as model.posterior.num_codes={fewer}"
        )

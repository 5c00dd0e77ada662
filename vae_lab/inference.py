"""A trained model in Python: sample, reconstruct, encode, decode."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.config.validation import check_targets
from vae_lab.metrics.importance import importance_bound
from vae_lab.models.base import Model, parts_without_density
from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.runs.resume import resume_checkpoint, run_dir_of
from vae_lab.runs.stored_config import load_config
from vae_lab.second_stage.stage import require_single_layer
from vae_lab.second_stage.storage import FOLDER, FittedTo, read_fitted_prior
from vae_lab.training.build import restore_model
from vae_lab.utils.errors import UsageError


class Lab:
    """A trained VAE, in evaluation mode, on the CPU unless moved with `to`.

    config: the run's config. step: of the optimiser, at which the weights were saved. image: shape and pixel values of
    its images. fitted_prior: name of the prior fitted to the latents, if it replaces the trained one. labels, in all
    methods: int64 (B,), required by a conditional model and ignored by others. `encode` and `decode` raise ValueError
    for a model with several stochastic layers, which has no single q(z|x) and z.
    """

    def __init__(self, model: Model, config: DictConfig, step: int, fitted_prior: str | None = None) -> None:
        self.model, self.config, self.image = model.eval().requires_grad_(False), config, model.image
        self.step, self.fitted_prior = step, fitted_prior

    def to(self, device: str | torch.device) -> Lab:
        """Move the model to a device, and return this lab."""
        self.model.to(device)
        return self

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Distribution:
        """q(z|x), batch (B,), event the shape of the latent. images: (B, C, H, W), float in [0, 1]."""
        self._require_images(images, labels)
        return self.model.encode(images, labels)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of p(x|z), (*batch, C, H, W). z: (*batch, *shape)."""
        return self.model.decode(z, labels).mean

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean image decoded from the centre of the posterior, (B, C, H, W)."""
        self._require_images(images, labels)
        return self.model.reconstruct(images, labels).mean

    def sample(self, num_images: int, temperature: float = 1.0, labels: Tensor | int | None = None) -> Tensor:
        """Mean images decoded from prior samples, (num_images, C, H, W); temperature scales the spread of the prior.

        labels: one per image, or one for all. ValueError: a prior that cannot be sampled, or not at a temperature.
        """
        device = next(self.model.parameters()).device
        y = torch.full((num_images,), labels, device=device) if isinstance(labels, int) else labels
        self._require_labels(y, num_images)
        try:
            return self.model.sample(num_images, y, temperature).mean
        except NotImplementedError as error:
            raise ValueError(str(error)) from error

    def log_likelihood(self, images: Tensor, num_samples: int = 64, labels: Tensor | None = None) -> Tensor:
        """The importance-weighted bound on log p(x), (B,) in nats; it rises with num_samples.

        images: (B, C, H, W), already binarised as in training (`data.binarize`).
        """
        self._require_images(images, labels)
        if parts := parts_without_density(self.model):
            raise ValueError(f"{' and '.join(parts)} has no density, so there is no bound on log p(x)")
        return importance_bound(self.model, images, num_samples, y=labels)

    def _require_labels(self, labels: Tensor | None, count: int) -> None:
        if labels is None or not self.model.conditional:
            return  # the model itself asks for those that it lacks
        classes = self.image.num_classes
        if labels.shape != (count,) or labels.dtype != torch.int64:
            found = f"{labels.dtype} {tuple(labels.shape)}"
            raise ValueError(f"labels: expected int64 ({count},), one for each image; found {found}")
        if count and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels: expected 0 to {classes - 1}; found {labels.min()} to {labels.max()}")

    def _require_images(self, images: Tensor, labels: Tensor | None) -> None:
        shape = f"(B, {', '.join(map(str, self.image.shape))})"
        expected = f"expected a float32 torch.Tensor {shape} in [0, 1], B at least 1"
        if not isinstance(images, Tensor):
            raise ValueError(f"{expected}; found a {type(images).__name__}")
        fits = images.ndim == 4 and tuple(images.shape[1:]) == self.image.shape and len(images)
        if not fits or images.dtype != torch.float32:
            hint = "\nconvert uint8 images with images.float() / 255" if images.dtype == torch.uint8 else ""
            raise ValueError(f"{expected}; found {images.dtype} {tuple(images.shape)}{hint}")
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"{expected}; found values in [{images.min():.3g}, {images.max():.3g}]")
        self._require_labels(labels, len(images))


def load(
    run: str | Path,
    checkpoint: str = "best",
    trusted: bool = False,
    prior: Literal["fitted", "trained"] | None = None,
) -> Lab:
    """Load the model of a run directory with the weights of checkpoints/<checkpoint>.ckpt, averaged if EMA is on.

    run: may also be a checkpoint in it, whose weights are then loaded.

    prior: the one fitted to the run's latents (`vae_lab.fit_prior`) or the one the model was trained with; default: the
    fitted one if there is one. Builds only parts of vae_lab and torch, unless the run is trusted to name other code.
    Never runs code from a checkpoint. UsageError: not a run directory, no such checkpoint, a config with a target that
    is not allowed; a fitted prior that is missing or was fitted to other weights.
    """
    if prior not in (None, "fitted", "trained"):
        raise UsageError(f"prior: found {prior!r}, expected 'fitted' or 'trained'")
    if (path := resume_checkpoint(run)) == Path(run):
        checkpoint = path.stem
    run = run_dir_of(run)
    config = load_config(run, trusted, lenient=True)
    check_targets(config, ("model",))
    name = f"{checkpoint}.ckpt"
    saved = load_checkpoint(run / "checkpoints" / name, needed=("state_dict", "image", "global_step"))
    model, is_fitted = restore_model(saved, config), (run / FOLDER).exists()
    if prior == "fitted" and not is_fitted:
        raise UsageError(
            f"{run}: no prior was fitted to this run\nfit one with python -m vae_lab.fit_prior {shlex.quote(str(run))}"
        )
    if prior == "trained" or not is_fitted:
        return Lab(model, config, saved["global_step"])
    fitted_name, fitted = read_fitted_prior(run, model, FittedTo.of(name, saved), trusted)
    require_single_layer(model).replace_prior(fitted)
    return Lab(model, config, saved["global_step"], fitted_name)

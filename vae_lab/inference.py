"""A trained model in Python: sample, reconstruct, encode, decode."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.config.validation import check_targets
from vae_lab.core import Prior
from vae_lab.metrics.importance import importance_bound
from vae_lab.models.base import Model, parts_without_density
from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.runs.stored_config import load_config
from vae_lab.second_stage.stage import require_single_layer
from vae_lab.second_stage.storage import FOLDER, FittedWeights, read_fitted_prior
from vae_lab.training.build import model_weights, restore_model
from vae_lab.utils.errors import UsageError


class Lab:
    """A trained VAE, in evaluation mode, on the CPU unless moved with `to`.

    config: the run's config. image: shape and kind of the images it knows. fitted_prior: the name of the prior that was
    fitted to its latents, if the model has one in the place of its own. labels, everywhere: int64 (B,), which a
    conditional model needs and another does not see. A model with several stochastic layers has no one q(z|x) and no
    one z: ValueError at `encode` and `decode`.
    """

    def __init__(self, model: Model, config: DictConfig, fitted_prior: str | None = None) -> None:
        self.model, self.config, self.image = model.eval().requires_grad_(False), config, model.image
        self.fitted_prior = fitted_prior

    def to(self, device: str | torch.device) -> Lab:
        """The same on another device."""
        self.model.to(device)
        return self

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Distribution:
        """q(z|x), batch (B,), event the latent's shape. images: (B, C, H, W), float in [0, 1]."""
        self._require_images(images)
        return self.model.encode(images, labels)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of p(x|z), (*batch, C, H, W). z: (*batch, *shape)."""
        return self.model.decode(z, labels).mean

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean image decoded from the centre of the posterior, (B, C, H, W)."""
        self._require_images(images)
        return self.model.reconstruct(images, labels).mean

    def sample(self, num_images: int, temperature: float = 1.0, labels: Tensor | int | None = None) -> Tensor:
        """Mean images of latents from the prior, (num_images, C, H, W); temperature scales their spread.

        labels: of each image, or one of all. ValueError: a prior that has no samples, or no scale for a temperature.
        """
        y = torch.full((num_images,), labels) if isinstance(labels, int) else labels
        try:
            return self.model.sample(num_images, y, temperature).mean
        except NotImplementedError as error:
            raise ValueError(str(error)) from error

    def log_likelihood(self, images: Tensor, num_samples: int = 64, labels: Tensor | None = None) -> Tensor:
        """The importance-weighted bound on log p(x), (B,) in nats; it rises with num_samples.

        images: (B, C, H, W), with the binarisation that the run had (`data.binarize`) already done.
        """
        self._require_images(images)
        if points := parts_without_density(self.model):
            raise ValueError(f"{' and '.join(points)} has no density, so there is no bound on log p(x)")
        return importance_bound(self.model, images, num_samples, y=labels)

    def _require_images(self, images: Tensor) -> None:
        shape = f"(B, {', '.join(map(str, self.image.shape))})"
        expected = f"expected a float32 torch.Tensor {shape} in [0, 1], B at least 1"
        if not isinstance(images, Tensor):
            raise ValueError(f"{expected}; found a {type(images).__name__}")
        fits = images.ndim == 4 and tuple(images.shape[1:]) == self.image.shape and len(images)
        if not fits or images.dtype != torch.float32:
            way = "\nimages.float() / 255 makes it of uint8" if images.dtype == torch.uint8 else ""
            raise ValueError(f"{expected}; found {images.dtype} {tuple(images.shape)}{way}")
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"{expected}; found values in [{images.min():.3g}, {images.max():.3g}]")


def load(
    run: str | Path,
    checkpoint: str = "best",
    trusted: bool = False,
    prior: Literal["fitted", "trained"] | None = None,
) -> Lab:
    """The model of a run directory with the weights of checkpoints/<checkpoint>.ckpt: averaged ones if they are on.

    prior: the one fitted to the run's latents (`vae_lab.fit_prior`) or the one the model was trained with; default: the
    fitted one where there is one. Builds parts of vae_lab and of torch only, unless the run is trusted to name other
    code. Never runs code that a checkpoint holds.

    UsageError: no run, no such checkpoint, a config that names what it may not; no fitted prior though it is asked for,
    or one fitted to other weights than these.
    """
    if prior not in (None, "fitted", "trained"):
        raise UsageError(f"prior is 'fitted' or 'trained'; found {prior!r}")
    config = load_config(run, trusted)
    check_targets(config)
    name = f"{checkpoint}.ckpt"
    saved = load_checkpoint(Path(run) / "checkpoints" / name, needed=("state_dict", "image", "global_step"))
    lab, is_fitted = Lab(restore_model(saved, config), config), (Path(run) / FOLDER).exists()
    if prior == "fitted" and not is_fitted:
        raise UsageError(f"{run}: no prior was fitted to it\npython -m vae_lab.fit_prior run={run}")
    if prior == "trained" or not is_fitted:
        return lab
    found = FittedWeights.of(name, saved["global_step"], model_weights(saved))
    return with_fitted_prior(lab, *read_fitted_prior(Path(run), lab.model, found, trusted))


def with_fitted_prior(lab: Lab, name: str, prior: torch.nn.Module) -> Lab:
    """The same lab, with a prior fitted to its latents."""
    model = require_single_layer(lab.model)
    model.prior = cast("Prior", prior)
    return Lab(model, lab.config, name)

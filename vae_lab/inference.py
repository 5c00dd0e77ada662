"""A trained model in Python: sample, reconstruct, encode, decode."""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.config.validation import check_targets
from vae_lab.core import Posterior, Prior
from vae_lab.data.datamodule import ImageDataModule
from vae_lab.figures.latent_paths import Interpolation, axes_through, path_between
from vae_lab.figures.latent_space import LatentSpace
from vae_lab.likelihoods import Likelihood
from vae_lab.metrics.importance import importance_bound
from vae_lab.models.base import Model, evaluation_mode, parts_without_density
from vae_lab.models.vae import VAE
from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.runs.exported import is_export, read_export
from vae_lab.runs.resume import resume_checkpoint, run_dir_of
from vae_lab.runs.stored_config import load_config, move_data
from vae_lab.second_stage.stage import require_single_layer
from vae_lab.second_stage.storage import FOLDER, FittedTo, read_fitted_prior
from vae_lab.training.build import build_model, build_node, restore_model
from vae_lab.utils.errors import UsageError, require_extra

COLUMNS = 8  # of the grid of images in a notebook


class ImageBatch(Tensor):
    """Images (B, C, H, W), or rows of them (R, B, C, H, W), in [0, 1]: a tensor that a notebook displays as a grid."""

    def _repr_png_(self) -> bytes | None:
        if self.ndim not in (4, 5) or self.shape[-3] not in (1, 3, 4) or not self.numel():
            return None
        from vae_lab.figures.canvas import encode_png
        from vae_lab.figures.mosaic import Mosaic

        columns = self.shape[1] if self.ndim == 5 else min(len(self), COLUMNS)
        images = self.detach().float().cpu().as_subclass(Tensor).flatten(0, -4)
        return encode_png(Mosaic(images, columns, title="", xlabel="").pixels())


class Lab:
    """A trained VAE, in evaluation mode, on the CPU unless moved with `to`.

        >>> lab.sample(16).shape
        torch.Size([16, 1, 28, 28])
        >>> q = lab.encode(images)  # a torch Distribution
        >>> q.mean.shape, lab.decode(q.mean).shape
        (torch.Size([4, 8]), torch.Size([4, 1, 28, 28]))
        >>> lab.log_likelihood(images, num_samples=10).shape  # nats per image
        torch.Size([4])
        >>> lab.interpolate(images[:2], images[2:], steps=5).shape
        torch.Size([2, 5, 1, 28, 28])
        >>> lab.traverse(images, dims=[0, 3], steps=7).shape
        torch.Size([2, 7, 1, 28, 28])

    config: the run's config. step: of the optimiser, at which the weights were saved. image: shape and pixel values of
    its images. fitted_prior: name of the prior fitted to the latents, if it replaces the trained one. labels, in all
    methods: int64 (B,), required by a conditional model and ignored by others. `encode` and `decode` raise ValueError
    for a model with several stochastic layers, which has no single q(z|x) and z.
    """

    def __init__(self, model: Model, config: DictConfig, step: int, fitted_prior: str | None = None) -> None:
        self.model, self.config, self.image = model.eval().requires_grad_(False), config, model.image
        self.step, self.fitted_prior = step, fitted_prior

    def __repr__(self) -> str:
        model, images, *facts = self._facts().values()
        return f"Lab({model} of {images}; {'; '.join(facts)})"

    def _repr_html_(self) -> str:
        """The same as a table, for a notebook."""
        facts = {name: html.escape(fact.removeprefix("latent ")) for name, fact in self._facts().items()}
        return f"<table>{''.join(f'<tr><th>{name}</th><td>{fact}</td></tr>' for name, fact in facts.items())}</table>"

    def _facts(self) -> dict[str, str]:
        model = self.model
        parts = {
            type(part).__name__: None for part in model.modules() if isinstance(part, Posterior | Prior | Likelihood)
        }
        latents = [latent.shape for latent in model.latents]
        return {
            "model": type(model).__name__,
            "images": str(self.image),
            "latents": f"latent {latents[0]}" if len(latents) == 1 else f"{len(latents)} layers of latents",
            "parts": ", ".join(parts),
            "weights": f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters",
            "trained": f"step {self.step:,}",
        }

    def to(self, device: str | torch.device) -> Lab:
        """Move the model to a device, and return this lab."""
        self.model.to(device)
        return self

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Distribution:
        """q(z|x), batch (B,), event the shape of the latent. images: (B, C, H, W), float in [0, 1]."""
        self._require_images(images, labels)
        return self.model.encode(images, labels)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> ImageBatch:
        """The mean of p(x|z), (*batch, C, H, W). z: (*batch, *shape)."""
        return self.model.decode(z, labels).mean.as_subclass(ImageBatch)

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> ImageBatch:
        """The mean image decoded from the centre of the posterior, (B, C, H, W)."""
        self._require_images(images, labels)
        return self.model.reconstruct(images, labels).mean.as_subclass(ImageBatch)

    def sample(self, num_images: int, temperature: float = 1.0, labels: Tensor | int | None = None) -> ImageBatch:
        """Mean images decoded from prior samples, (num_images, C, H, W); temperature scales the spread of the prior.

        labels: one per image, or one for all. ValueError: a prior that cannot be sampled, or not at a temperature.
        """
        device = next(self.model.parameters()).device
        y = torch.full((num_images,), labels, device=device) if isinstance(labels, int) else labels
        self._require_labels(y, num_images)
        try:
            return self.model.sample(num_images, y, temperature).mean.as_subclass(ImageBatch)
        except NotImplementedError as error:
            raise ValueError(str(error)) from error

    def interpolate(
        self,
        start: Tensor,
        end: Tensor,
        steps: int = 11,
        kind: Interpolation = "spherical",
        labels: Tensor | None = None,
    ) -> ImageBatch:
        """Means decoded between the posterior centres of images, (B, steps, C, H, W). start, end: (B, C, H, W).

        kind: spherical (great circles, White 2016, arXiv:1609.04468) or linear. labels: kept along each path.
        ValueError: several stochastic layers, codes.
        """
        if self.model.latents[0].kind == "codes":
            raise ValueError("interpolate: this model has codes, and there is nothing between two codes")
        y = None if labels is None else labels[:, None]
        with evaluation_mode(self.model, 0):
            spaces = [self._space(images, labels) for images in (start, end)]
            first, last = (space.latents.centre for space in spaces)
            z = path_between(first, last, steps, kind, self.model.latents[0])
            return spaces[0].decode(z, y).as_subclass(ImageBatch)

    def traverse(
        self, images: Tensor, dims: Sequence[int] | None = None, steps: int = 11, reach: float = 3.0,
        labels: Tensor | None = None,
    ) -> ImageBatch:  # fmt: skip
        """The first image's latent with one dimension varied in each row, (len(dims), steps, C, H, W).

        dims: default the ten most active over the images. reach: standard deviations of the prior N(0, I), or of q(z)
        over the images under another, on each side of its mean. ValueError: latents that are not one vector.
        """
        if self.model.is_hierarchy or self.model.latents[0].kind != "vector" or len(self.model.latents[0].shape) > 1:
            raise ValueError("traverse: expected a model with one vector of latents")
        first = None if labels is None else labels[0]
        with evaluation_mode(self.model, 0):
            space = self._space(images, labels)
            chosen = space.dims_by_activity[:10] if dims is None else list(dims)
            if wrong := [dim for dim in chosen if not 0 <= dim < space.size]:
                raise ValueError(f"traverse: found dimension {wrong[0]}, expected 0 to {space.size - 1}")
            (mean, scale), centre = space.location, space.latents.centre[0]
            along = mean[chosen, None] + scale[chosen, None] * torch.linspace(-reach, reach, steps)
            return space.decode(axes_through(centre, along, chosen), first).as_subclass(ImageBatch)

    def _space(self, images: Tensor, labels: Tensor | None) -> LatentSpace:
        """The latents of images."""
        self._require_images(images, labels)
        self.model.encode(images[:1], None if labels is None else labels[:1])  # ValueError: several layers
        return LatentSpace(cast(VAE, self.model), images, labels if self.model.conditional else None)

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
    if is_export(run):
        return _load_export(run, trusted, prior)
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


def _load_export(folder: Path, trusted: bool, prior: str | None) -> Lab:
    """The model of an export, which has one prior. UsageError: it has not the prior asked for."""
    require_extra("export", "safetensors")
    exported = read_export(folder, trusted)
    if prior is not None and (prior == "fitted") != (exported.fitted_prior is not None):
        has = f"the fitted prior '{exported.fitted_prior}'" if exported.fitted_prior else "the trained prior"
        raise UsageError(f"prior={prior}: {folder} was exported with {has}\nexport the run again with prior={prior}")
    check_targets(exported.config, ("model",))
    model = build_model(exported.config, exported.image)
    try:
        model.load_state_dict(exported.weights)
    except RuntimeError as error:
        raise UsageError(f"{folder}: config.json and weights.safetensors do not match\nexport the run again") from error
    return Lab(model, exported.config, exported.step, exported.fitted_prior)


def images_of(lab: Lab, moved: DictConfig) -> ImageDataModule:
    """The images of a run, set up, where they are now. UsageError: they are not there, or of another shape."""
    move_data(lab.config, moved)
    check_targets(lab.config, ("data",))
    data: ImageDataModule = build_node(lab.config.data)
    data.setup()
    if data.image != lab.image:
        raise UsageError(f"data: the model was trained on images of {lab.image}\nfound {data.image}")
    return data

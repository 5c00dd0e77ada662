"""Learned Gaussian priors: a mixture, one for each class, one of full covariance.

Those with a `fit` can also be fitted to the latents of a trained model: by expectation maximisation, in closed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import ReshapeTransform

from vae_lab.core import NO_INPUTS, LatentKind, LatentSpec, PriorInputs
from vae_lab.distributions.gaussians import (
    FullNormal,
    below_diagonal_indices,
    bounded_scale,
    logvar_for_scale,
    num_below_diagonal,
    scale_tril,
)
from vae_lab.distributions.mixtures import mixture

SMALLEST_VARIANCE = 1e-6  # added to a fitted one: what scikit-learn adds, too


class GaussianMixture(nn.Module):
    """A mixture of diagonal Gaussians, its means, scales and weights learned.

    num_components: K. spread: standard deviation of the first means around 0, so that components differ.
    ValueError: K < 1; a negative spread.
    """

    kinds: tuple[LatentKind, ...] = ("vector",)

    def __init__(self, latent: LatentSpec, num_components: int = 50, spread: float = 1.0) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"model.prior.num_components is at least 1; found {num_components}")
        if spread < 0:
            raise ValueError(f"model.prior.spread is a standard deviation, at least 0; found {spread}")
        self.means = nn.Parameter(spread * torch.randn(num_components, *latent.shape))
        self.logvars = nn.Parameter(torch.zeros(num_components, *latent.shape))
        self.logits = nn.Parameter(torch.zeros(num_components))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), batch ()."""
        return mixture(self.logits, _diagonal(self.means, self.logvars))

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Set it to what expectation maximisation finds for latents (N, *shape). ValueError: N < K."""
        from sklearn.mixture import GaussianMixture as Fitted

        count = len(self.logits)
        if len(z) < count:
            raise ValueError(
                f"model.prior.num_components={count}: a mixture is fitted to at least as many latents, found {len(z)}"
            )
        seed = int(torch.randint(2**31 - 1, ()))  # of the run, by torch's generator
        fitted = Fitted(count, covariance_type="diag", reg_covar=SMALLEST_VARIANCE, max_iter=300, random_state=seed)
        fitted.fit(z.flatten(1).double().cpu().numpy())
        weights, means, variances = map(torch.from_numpy, (fitted.weights_, fitted.means_, fitted.covariances_))
        self.logits.copy_(weights.log())
        self.means.copy_(means.view_as(self.means))
        self.logvars.copy_(logvar_for_scale(variances.sqrt()).view_as(self.logvars))


def _diagonal(means: Tensor, logvars: Tensor) -> Distribution:
    """Gaussians with a batch of their first dimension."""
    return Independent(Normal(means, bounded_scale(logvars), validate_args=False), means.dim() - 1, validate_args=False)


class ClassGaussian(nn.Module):
    """p(z|y): a diagonal Gaussian for each class, means and scales learned from N(0, I) on.

    Sohn et al. 2015, "Learning Structured Output Representation using Deep Conditional Generative Models".
    ValueError: images without labels; a call without them.
    """

    kinds: tuple[LatentKind, ...] = ("vector",)
    needs_labels = True

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        if latent.image.num_classes < 1:
            raise ValueError(
                "model/prior=class_gaussian has a Gaussian for each class, and these images have no labels.\n"
                "Choose data=mnist or other labelled images, or model/prior=gaussian_mixture"
            )
        self.means = nn.Parameter(torch.zeros(latent.image.num_classes, *latent.shape))
        self.logvars = nn.Parameter(torch.zeros(latent.image.num_classes, *latent.shape))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z|y), batch (B,) of labels y (B,)."""
        if inputs.y is None:
            raise ValueError("model/prior=class_gaussian depends on the labels: give it the labels y, int64 (B,)")
        return _diagonal(self.means[inputs.y], self.logvars[inputs.y])


class FullGaussian(nn.Module):
    """One Gaussian with a full covariance, over all of a latent's n numbers, from N(0, I) on; n^2 / 2 parameters."""

    kinds: tuple[LatentKind, ...] = ("vector",)

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape, size = latent.shape, math.prod(latent.shape)
        self.mean = nn.Parameter(torch.zeros(size))
        self.logvar = nn.Parameter(torch.zeros(size))
        self.below = nn.Parameter(torch.zeros(num_below_diagonal(size)))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), batch ()."""
        normal = FullNormal(self.mean, scale_tril=scale_tril(self.logvar, self.below), validate_args=False)
        if len(self.shape) == 1:
            return normal
        to_map = ReshapeTransform(self.mean.shape, torch.Size(self.shape))
        return TransformedDistribution(normal, to_map, validate_args=False)

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Set it to the mean and covariance of latents (N, *shape). ValueError: N < 2."""
        if len(z) < 2:
            raise ValueError(f"model/prior=full_gaussian: a covariance is of at least 2 latents; found {len(z)}")
        z = z.flatten(1).double()
        floor = SMALLEST_VARIANCE * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        factor = torch.linalg.cholesky(torch.cov(z.mT).reshape(floor.shape) + floor)
        rows, columns = below_diagonal_indices(len(factor), z.device)
        self.mean.copy_(z.mean(0))
        self.logvar.copy_(logvar_for_scale(factor.diagonal()))
        self.below.copy_(factor[rows, columns])

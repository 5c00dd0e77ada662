"""Learned Gaussian priors: a mixture, one per class, one with full covariance.

Those with a `fit` can also be fitted to the latents of a trained model, by expectation maximisation or in closed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import ReshapeTransform

from vae_lab.core import NO_INPUTS, LatentSpec, Prior, PriorInputs
from vae_lab.distributions.gaussians import (
    FullNormal,
    below_diagonal_indices,
    bounded_scale,
    logvar_for_scale,
    num_below_diagonal,
    scale_tril,
)
from vae_lab.distributions.mixtures import mixture

MIN_VARIANCE = 1e-6  # added to fitted variances; scikit-learn's default


class GaussianMixture(Prior):
    """A mixture of diagonal Gaussians with learned means, scales and weights.

    num_components: K. spread: standard deviation of the initial means around 0, so that components differ.
    ValueError: K < 1; a negative spread.
    """

    has_fit = True

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
        """Fit the mixture to latents (N, *shape) by expectation maximisation. ValueError: N < K."""
        from sklearn.mixture import GaussianMixture as Fitted

        count = len(self.logits)
        if len(z) < count:
            raise ValueError(
                f"model.prior.num_components={count}: fitting needs at least as many latents; found {len(z)}"
            )
        seed = int(torch.randint(2**31 - 1, ()))  # from torch's generator, which is seeded
        fitted = Fitted(count, covariance_type="diag", reg_covar=MIN_VARIANCE, max_iter=300, random_state=seed)
        fitted.fit(z.flatten(1).double().cpu().numpy())
        weights, means, variances = map(torch.from_numpy, (fitted.weights_, fitted.means_, fitted.covariances_))
        self.logits.copy_(weights.log())
        self.means.copy_(means.view_as(self.means))
        self.logvars.copy_(logvar_for_scale(variances.sqrt()).view_as(self.logvars))


def _diagonal(means: Tensor, logvars: Tensor) -> Distribution:
    """Diagonal Gaussians; the first dimension is the batch."""
    return Independent(Normal(means, bounded_scale(logvars), validate_args=False), means.dim() - 1, validate_args=False)


class ClassGaussian(Prior):
    """p(z|y): a diagonal Gaussian per class with learned means and scales, initialised to N(0, I).

    Sohn et al. 2015, "Learning Structured Output Representation using Deep Conditional Generative Models".
    ValueError: images without labels; a call without labels.
    """

    needs_labels = True

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        if latent.image.num_classes < 1:
            raise ValueError(
                "model/prior=class_gaussian has one Gaussian per class, but these images have no labels.\n"
                "Choose data=mnist or other labelled images, or model/prior=gaussian_mixture"
            )
        self.means = nn.Parameter(torch.zeros(latent.image.num_classes, *latent.shape))
        self.logvars = nn.Parameter(torch.zeros(latent.image.num_classes, *latent.shape))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z|y), batch (B,), for labels y (B,)."""
        if inputs.y is None:
            raise ValueError("model/prior=class_gaussian depends on the labels: give it the labels y, int64 (B,)")
        return _diagonal(self.means[inputs.y], self.logvars[inputs.y])


class FullGaussian(Prior):
    """A Gaussian with full covariance over all n dimensions of a latent, initialised to N(0, I); n^2 / 2 parameters."""

    has_fit = True

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
        """Set the mean and covariance to those of latents (N, *shape). ValueError: N < 2."""
        if len(z) < 2:
            raise ValueError(f"model/prior=full_gaussian: a covariance needs at least 2 latents; found {len(z)}")
        z = z.flatten(1).double()
        floor = MIN_VARIANCE * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        factor = torch.linalg.cholesky(torch.cov(z.mT).reshape(floor.shape) + floor)
        rows, columns = below_diagonal_indices(len(factor), z.device)
        self.mean.copy_(z.mean(0))
        self.logvar.copy_(logvar_for_scale(factor.diagonal()))
        self.below.copy_(factor[rows, columns])

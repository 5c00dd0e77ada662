"""Learned Gaussian priors: a mixture, one per class, one with full covariance, one given the layers above.

Those with a `fit` can also be fitted to the latents of a trained model, by expectation maximisation or in closed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import NO_INPUTS, ConditionalPrior, LatentSpec, Prior, PriorInputs
from vae_lab.distributions.gaussians import (
    FullNormal,
    bounded_scale,
    diagonal_normal,
    logvar_for_scale,
    mixture,
    scale_tril,
    soft_clamp,
)
from vae_lab.distributions.reshaped import to_shape
from vae_lab.priors.fixed import StandardNormal

LOG_SCALE_LIMIT = 5.0  # bound on the log scale of a conditional prior
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
        return mixture(self.logits, diagonal_normal(self.means, bounded_scale(self.logvars)))

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
        return diagonal_normal(self.means[inputs.y], bounded_scale(self.logvars[inputs.y]))


class FullGaussian(Prior):
    """A Gaussian with full covariance over all n dimensions of a latent, initialised to N(0, I); n^2 / 2 parameters."""

    has_fit = True

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape, size = latent.shape, math.prod(latent.shape)
        self.mean = nn.Parameter(torch.zeros(size))
        self.logvar = nn.Parameter(torch.zeros(size))
        self.below = nn.Parameter(torch.zeros(size * (size - 1) // 2))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        normal = FullNormal(self.mean, scale_tril=scale_tril(self.logvar, self.below), validate_args=False)
        return to_shape(normal, self.shape)

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Set the mean and covariance to those of latents (N, *shape). ValueError: N < 2."""
        if len(z) < 2:
            raise ValueError(f"model/prior=full_gaussian: a covariance needs at least 2 latents; found {len(z)}")
        z = z.flatten(1).double()
        floor = MIN_VARIANCE * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        factor = torch.linalg.cholesky(torch.cov(z.mT).reshape(floor.shape) + floor)
        rows, columns = torch.tril_indices(len(factor), len(factor), -1, device=z.device)
        self.mean.copy_(z.mean(0))
        self.logvar.copy_(logvar_for_scale(factor.diagonal()))
        self.below.copy_(factor[rows, columns])


class ConditionalGaussian(ConditionalPrior):
    """A diagonal Gaussian with means and bounded log scales from the layers above; N(0, I) at the top."""

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.num_params = 2 * latent.shape[0]
        self.top_prior = StandardNormal(latent)

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        return self.top_prior(inputs)

    def conditioned_on(self, params: Tensor) -> Distribution:
        """params: (N, 2 D, *map), means then log scales. Batch (N,)."""
        mean, log_scale = params.float().chunk(2, 1)
        return diagonal_normal(mean, soft_clamp(log_scale, LOG_SCALE_LIMIT).exp())

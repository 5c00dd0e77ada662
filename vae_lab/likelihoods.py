"""Likelihood families: a decoder's output to p(x|z), a torch Distribution over images.

A family says how many channels (`num_channels`) it asks of a decoder. Densities are computed in float32 whatever the
network's precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent, Normal

from vae_lab.core import ImageSpec
from vae_lab.distributions.gaussians import inverse_soft_clamp, soft_clamp
from vae_lab.distributions.pixels import ContinuousBernoulli as ExactContinuousBernoulli
from vae_lab.distributions.pixels import DiscretizedLogisticMixture as LogisticMixture
from vae_lab.distributions.pixels import num_mixture_params
from vae_lab.utils.callables import unwrap_partial

LOG_SCALE_LIMIT = 10.0  # scales of a likelihood between 0.000045 and 22,000
SMALLEST_VARIANCE = 1e-6  # of pixels in [0, 1], whose steps are 1/255
IMAGE_DIMS = 3


def independent_pixels(distribution: Distribution) -> Distribution:
    """Declare (C, H, W) the event: log_prob sums over pixels."""
    return Independent(distribution, IMAGE_DIMS, validate_args=False)


class Bernoulli(nn.Module):
    """Binary pixels, or cross-entropy on grey values, which is no likelihood of them.

    ValueError: colour images without `grey_values`, which says that the cross-entropy is meant.
    """

    levels: int | None = 2

    def __init__(self, image: ImageSpec, grey_values: bool = False) -> None:
        super().__init__()
        if image.channels > 1 and image.levels > 2 and not grey_values:
            raise ValueError(
                f"model.likelihood: Bernoulli asks for binary pixels, these have {image.channels} channels of "
                f"{image.levels} values.\nChoose model/likelihood=gaussian_optimal (or logistic_mixture), or say "
                "model.likelihood.grey_values=true to mean cross-entropy on grey values."
            )
        self.num_channels = image.channels

    def forward(self, params: Tensor) -> Distribution:
        """params: logits."""
        return independent_pixels(TorchBernoulli(logits=params.float(), validate_args=False))


class ContinuousBernoulli(nn.Module):
    """A density on [0, 1]; what cross-entropy on grey values needs to be a likelihood. arXiv:1907.06845."""

    levels: int | None = None

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.num_channels = image.channels

    def forward(self, params: Tensor) -> Distribution:
        """params: logits."""
        return independent_pixels(ExactContinuousBernoulli(params.float(), validate_args=False))


class LocationScale(nn.Module):
    """A density around a mean in [0, 1], one scale for all pixels: fixed, or learned with the weights.

    density: torch.distributions.Normal, Laplace, ... A learned scale makes the weight of the KL a result rather than a
    choice: Rybkin et al. 2021, arXiv:2006.13202.
    """

    levels: int | None = None

    def __init__(
        self, image: ImageSpec, density: Callable[..., Distribution], scale: float, learned: bool = False
    ) -> None:
        super().__init__()
        if scale <= 0 or abs(math.log(scale)) >= LOG_SCALE_LIMIT:
            raise ValueError(f"model.likelihood.scale is a width above 0, between 4.6e-5 and 22,000; found {scale}")
        self.num_channels = image.channels
        self.density = unwrap_partial(density)
        self.log_scale = nn.Parameter(
            torch.tensor(inverse_soft_clamp(math.log(scale), LOG_SCALE_LIMIT)), requires_grad=learned
        )

    def forward(self, params: Tensor) -> Distribution:
        """params: logits of the mean."""
        scale = torch.exp(soft_clamp(self.log_scale, LOG_SCALE_LIMIT))
        return independent_pixels(self.density(params.float().sigmoid(), scale, validate_args=False))


class OptimalGaussian(nn.Module):
    """A Gaussian whose one variance is the mean squared error: sigma-VAE's optimal scale. arXiv:2006.13202, eq. 10.

    While training, the error of the batch being scored, which is its maximum of the likelihood (so a batch's log p(x|z)
    is above what any one density gives). While evaluating, the error that `fit` last found on training images: a scale
    that saw the test images would not be a density of them.
    """

    levels: int | None = None
    mse: Tensor

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.num_channels = image.channels
        self.register_buffer("mse", torch.tensor(0.1))

    def forward(self, params: Tensor) -> Distribution:
        """params: logits of the mean."""
        mean = params.float().sigmoid()
        if self.training:
            return FittedNormal(mean)
        return independent_pixels(Normal(mean, self.mse.sqrt(), validate_args=False))

    def fit(self, squared_errors: Tensor) -> None:
        """Set the variance used in evaluation to the mean of these."""
        self.mse.copy_(squared_errors.mean().clamp(min=SMALLEST_VARIANCE))


class FittedNormal(Distribution):
    """A Normal over images whose scale is fitted to the images it scores."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, mean: Tensor) -> None:
        self._mean = mean
        super().__init__(mean.shape[:-IMAGE_DIMS], mean.shape[-IMAGE_DIMS:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """(*batch, C, H, W)."""
        return self._mean

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, the batch shape. At the optimum the gradient through the scale is 0, so it is a constant here."""
        mse = (value - self._mean).detach().square().mean().clamp(min=SMALLEST_VARIANCE)
        return independent_pixels(Normal(self._mean, mse.sqrt(), validate_args=False)).log_prob(value)


class LogisticMixture256(nn.Module):
    """A discretised mixture of logistics: a probability mass function of 256 grey or colour levels."""

    def __init__(self, image: ImageSpec, num_components: int = 10) -> None:
        super().__init__()
        self.levels: int | None = 256
        self.image_channels, self.num_components = image.channels, num_components
        self.num_channels = num_mixture_params(num_components, image.channels)

    def forward(self, params: Tensor) -> Distribution:
        """params: per component a logit, means, log scales and coefficients."""
        m, c = self.num_components, self.image_channels
        logits, rest = params.float().split((m, self.num_channels - m), -3)
        means, log_scales, coefficients = rest.unflatten(-3, (m, -1)).split((c, c, math.comb(c, 2)), -3)
        # Scales from e^-7 to e^7 around e^-2: a few grey levels, where training starts well.
        return LogisticMixture(logits, means, soft_clamp(log_scales - 2, 7), coefficients.tanh())

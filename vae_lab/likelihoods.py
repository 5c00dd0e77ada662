"""Likelihood families: map a decoder's output to p(x|z), a torch Distribution over images.

A family declares `num_channels`, the decoder outputs it needs per pixel. Densities are computed in float32 whatever the
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

LOG_SCALE_LIMIT = 10.0  # scales between 0.000045 and 22,000
MIN_VARIANCE = 1e-6  # for pixels in [0, 1] with a quantisation step of 1/255
IMAGE_DIMS = 3


def independent_pixels(distribution: Distribution) -> Distribution:
    """Declare (C, H, W) as event dimensions: log_prob sums over pixels."""
    return Independent(distribution, IMAGE_DIMS, validate_args=False)


class Bernoulli(nn.Module):
    """Binary pixels, or cross-entropy on grey values, which is not a likelihood of them.

    ValueError: colour images without `grey_values`, which confirms that cross-entropy is intended.
    """

    levels: int | None = 2

    def __init__(self, image: ImageSpec, grey_values: bool = False) -> None:
        super().__init__()
        if image.channels > 1 and image.levels > 2 and not grey_values:
            raise ValueError(
                f"model.likelihood: Bernoulli needs binary pixels; found {image.channels} channels of "
                f"{image.levels} values.\nChoose model/likelihood=gaussian_optimal (or logistic_mixture), or set "
                "model.likelihood.grey_values=true for cross-entropy on grey values."
            )
        self.num_channels = image.channels

    def forward(self, params: Tensor) -> Distribution:
        """params: logits."""
        return independent_pixels(TorchBernoulli(logits=params.float(), validate_args=False))


class ContinuousBernoulli(nn.Module):
    """A density on [0, 1]: cross-entropy on grey values, normalised to be a likelihood. arXiv:1907.06845."""

    levels: int | None = None

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.num_channels = image.channels

    def forward(self, params: Tensor) -> Distribution:
        """params: logits."""
        return independent_pixels(ExactContinuousBernoulli(params.float(), validate_args=False))


class LocationScale(nn.Module):
    """A density around a mean in [0, 1] with one scale for all pixels, fixed or learned with the weights.

    density: torch.distributions.Normal, Laplace, ... A learned scale replaces choosing the weight of the KL: Rybkin et
    al. 2021, arXiv:2006.13202.
    """

    levels: int | None = None

    def __init__(
        self, image: ImageSpec, density: Callable[..., Distribution], scale: float, learned: bool = False
    ) -> None:
        super().__init__()
        if scale <= 0 or abs(math.log(scale)) >= LOG_SCALE_LIMIT:
            raise ValueError(f"model.likelihood.scale lies between 4.6e-5 and 22,000; found {scale}")
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
    """A Gaussian whose shared variance is the mean squared error: the optimal sigma-VAE. arXiv:2006.13202, eq. 10.

    In training mode, the error of the batch being scored, the maximum-likelihood variance (so log p(x|z) of a batch is
    above that of any fixed density). In evaluation mode, the error that `fit` last found on training images: a scale
    fitted to the test images would not give a density of them.
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
        """Set the variance used in evaluation mode to the mean of squared errors of any shape."""
        self.mse.copy_(squared_errors.mean().clamp(min=MIN_VARIANCE))


class FittedNormal(Distribution):
    """A Normal over images whose shared scale is fitted to the images it scores."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, mean: Tensor) -> None:
        self._mean = mean
        super().__init__(mean.shape[:-IMAGE_DIMS], mean.shape[-IMAGE_DIMS:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._mean

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, of the batch shape. The scale is detached: at the optimum its gradient is 0."""
        mse = (value - self._mean).detach().square().mean().clamp(min=MIN_VARIANCE)
        return independent_pixels(Normal(self._mean, mse.sqrt(), validate_args=False)).log_prob(value)


class LogisticMixture256(nn.Module):
    """A discretised mixture of logistics: a probability mass function over 256 levels, grey or colour."""

    def __init__(self, image: ImageSpec, num_components: int = 10) -> None:
        super().__init__()
        self.levels: int | None = 256
        self.image_channels, self.num_components = image.channels, num_components
        self.num_channels = num_mixture_params(num_components, image.channels)

    def forward(self, params: Tensor) -> Distribution:
        """params: a logit per component, then means, log scales and channel coefficients of each component."""
        m, c = self.num_components, self.image_channels
        logits, rest = params.float().split((m, self.num_channels - m), -3)
        means, log_scales, coefficients = rest.unflatten(-3, (m, -1)).split((c, c, math.comb(c, 2)), -3)
        # Scales within a factor e^7 of e^-2, a good initial value: a few grey levels.
        return LogisticMixture(logits, means, soft_clamp(log_scales - 2, 7), coefficients.tanh())

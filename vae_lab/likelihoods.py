"""Likelihood families: map a decoder's output to p(x|z), a torch Distribution over images.

Densities are computed in float32 whatever the network's precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lab.core import ImageSpec
from vae_lab.distributions.base import UnvalidatedDistribution
from vae_lab.distributions.gaussians import inverse_soft_clamp, soft_clamp
from vae_lab.distributions.pixels import ChannelNormal, FastBernoulli
from vae_lab.distributions.pixels import ContinuousBernoulli as ExactContinuousBernoulli
from vae_lab.distributions.pixels import DiscretizedLogisticMixture as LogisticMixture
from vae_lab.utils.callables import unwrap_partial

LOG_SCALE_LIMIT = 10.0  # scales between 0.000045 and 22,000
MIN_VARIANCE = 1e-6  # for pixels in [0, 1] with a quantisation step of 1/255
SHRINKAGE = 0.01
IMAGE_DIMS = 3


class Likelihood(nn.Module):
    """p(x|z) from a decoder's output (*batch, num_channels, H, W): batch as given, event (C, H, W).

    fits_batch: in training mode, the scale is the optimum for the batch being scored (so log p(x|z) of a batch is above
    that of any fixed density); in evaluation mode, what `fit` last found on training images, for a scale fitted to the
    test images would not give a density of them.
    """

    num_channels: int  # decoder outputs per pixel
    levels: int | None = None  # pixel values of a mass function; None for a density
    fits_batch: bool = False
    has_fixed_scale: bool = False  # a density whose scale is not learned
    __call__: Callable[..., Distribution]  # of forward, for type checkers

    def error_statistics(self, error: Tensor) -> Tensor:
        """What `fit` needs of the errors (B, C, H, W) of means: one row per image, (B, ...)."""
        raise NotImplementedError(f"{type(self).__name__} is not fitted to images")

    def fit(self, statistics: Tensor) -> None:
        """Set the scale used in evaluation mode from the `error_statistics` of N training images, (N, ...)."""
        raise NotImplementedError(f"{type(self).__name__} is not fitted to images")


def independent_pixels(distribution: Distribution) -> Distribution:
    """Declare (C, H, W) as event dimensions: log_prob sums over pixels."""
    return Independent(distribution, IMAGE_DIMS, validate_args=False)


class Bernoulli(Likelihood):
    """Binary pixels, or cross-entropy on grey values, which is not a likelihood of them.

    ValueError: colour images without `grey_values`, which confirms that cross-entropy is intended.
    """

    levels = 2

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
        return independent_pixels(FastBernoulli(logits=params.float(), validate_args=False))


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1]: cross-entropy on grey values, normalised to be a likelihood. arXiv:1907.06845."""

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.num_channels = image.channels

    def forward(self, params: Tensor) -> Distribution:
        """params: logits."""
        return independent_pixels(ExactContinuousBernoulli(params.float()))


class LocationScale(Likelihood):
    """A density around a mean in [0, 1] with one scale for all pixels, fixed or learned with the weights.

    density: torch.distributions.Normal, Laplace, ... A learned scale replaces choosing the weight of the KL: Rybkin et
    al. 2021, arXiv:2006.13202.
    """

    def __init__(
        self, image: ImageSpec, density: Callable[..., Distribution], scale: float, learned: bool = False
    ) -> None:
        super().__init__()
        if scale <= 0 or abs(math.log(scale)) >= LOG_SCALE_LIMIT:
            raise ValueError(f"model.likelihood.scale lies between 4.6e-5 and 22,000; found {scale}")
        self.num_channels = image.channels
        self.density, self.has_fixed_scale = unwrap_partial(density), not learned
        self.log_scale = nn.Parameter(
            torch.tensor(inverse_soft_clamp(math.log(scale), LOG_SCALE_LIMIT)), requires_grad=learned
        )

    def forward(self, params: Tensor) -> Distribution:
        """params: logits of the mean."""
        scale = torch.exp(soft_clamp(self.log_scale, LOG_SCALE_LIMIT))
        return independent_pixels(self.density(params.float().sigmoid(), scale, validate_args=False))


class OptimalGaussian(Likelihood):
    """A Gaussian whose shared variance is the mean squared error: the optimal sigma-VAE. arXiv:2006.13202, eq. 10."""

    fits_batch = True
    mse: Tensor

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.num_channels = image.channels
        self.register_buffer("mse", torch.tensor(0.1))

    def forward(self, params: Tensor) -> Distribution:
        """params: logits of the mean."""
        mean = params.float().sigmoid()

        def normal(mse: Tensor) -> Distribution:
            return independent_pixels(Normal(mean, mse.clamp(min=MIN_VARIANCE).sqrt(), validate_args=False))

        return FittedNormal(mean, lambda error: normal(error.square().mean())) if self.training else normal(self.mse)

    def error_statistics(self, error: Tensor) -> Tensor:
        """Mean squared errors, (B,)."""
        return error.square().mean((1, 2, 3))

    def fit(self, statistics: Tensor) -> None:
        """Set the variance used in evaluation mode to the mean of squared errors of any shape."""
        self.mse.copy_(statistics.mean().clamp(min=MIN_VARIANCE))


class ColorGaussian(Likelihood):
    """A Gaussian whose pixels share a covariance of the channels, the mean outer product of their errors.

    `OptimalGaussian` for colour: the errors of a pixel's channels are mostly one error of brightness, which a single
    variance counts once per channel. In training mode the covariance of the batch is shrunk a hundredth towards its
    mean variance: in pictures with little colour, the gradient of the nearly exact colours would drown that of the
    outlines. ValueError: images of one channel.
    """

    fits_batch = True
    covariance: Tensor

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        if image.channels == 1:
            raise ValueError(
                "model.likelihood: ColorGaussian has a covariance of colour channels; found 1 channel.\n"
                "Choose model/likelihood=gaussian_optimal, its equal for grey pictures"
            )
        self.num_channels = image.channels
        self.register_buffer("covariance", 0.1 * torch.eye(image.channels))

    def forward(self, params: Tensor) -> Distribution:
        """params: logits of the mean."""
        mean = params.float().sigmoid()
        if self.training:
            return FittedNormal(mean, lambda error: ChannelNormal(mean, self._shrunk_optimum(error)))
        return ChannelNormal(mean, self.covariance)

    def error_statistics(self, error: Tensor) -> Tensor:
        """Mean of e e^T over the pixels of each image, (B, C, C), without matmul, which autocast rounds."""
        return torch.stack([(error * channel.unsqueeze(-3)).mean((-2, -1)) for channel in error.unbind(-3)], -1)

    def fit(self, statistics: Tensor) -> None:
        """Set the covariance used in evaluation mode to the mean of outer products, (N, C, C)."""
        self.covariance.copy_(self._optimum(statistics))

    def _optimum(self, products: Tensor) -> Tensor:
        """The mean of (*batch, C, C), positive definite for pictures in black and white or without errors, too."""
        mean = products.flatten(0, -3).mean(0)
        return mean + MIN_VARIANCE * torch.eye(len(mean), device=mean.device)

    def _shrunk_optimum(self, error: Tensor) -> Tensor:
        optimum = self._optimum(self.error_statistics(error))
        return optimum + SHRINKAGE * optimum.diagonal().mean() * torch.eye(len(optimum), device=optimum.device)


class FittedNormal(UnvalidatedDistribution):
    """A Normal over images whose scale is fitted to the images it scores. fit: from errors (*batch, C, H, W) to it."""

    def __init__(self, mean: Tensor, fit: Callable[[Tensor], Distribution]) -> None:
        self._mean, self._fit = mean, fit
        super().__init__(mean.shape[:-IMAGE_DIMS], mean.shape[-IMAGE_DIMS:])

    @property
    def mean(self) -> Tensor:
        return self._mean

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, of the batch shape. The scale is detached: at the optimum its gradient is 0."""
        return self._fit((value - self._mean).detach()).log_prob(value)


class LogisticMixture256(Likelihood):
    """A discretised mixture of logistics: a probability mass function over 256 levels, grey or colour."""

    levels = 256

    def __init__(self, image: ImageSpec, num_components: int = 10) -> None:
        super().__init__()
        self.image_channels, self.num_components = image.channels, num_components
        self.num_channels = num_components * (1 + 2 * image.channels + math.comb(image.channels, 2))

    def forward(self, params: Tensor) -> Distribution:
        """params: a logit per component, then means, log scales and channel coefficients of each component."""
        m, c = self.num_components, self.image_channels
        logits, rest = params.float().split((m, self.num_channels - m), -3)
        means, log_scales, coefficients = rest.unflatten(-3, (m, -1)).split((c, c, math.comb(c, 2)), -3)
        # Scales within a factor e^7 of e^-2, a good initial value: a few grey levels.
        return LogisticMixture(logits, means, soft_clamp(log_scales - 2, 7), coefficients.tanh())

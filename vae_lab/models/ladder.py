"""A ladder VAE: many stochastic layers, from a coarse feature map at the top to fine ones at the bottom.

One bottom-up pass extracts image features. The prior and the posterior share the top-down pass: q(z_l | x, z_<l) gets
the inputs of p(z_l | z_<l), and the image features at its resolution. Sonderby et al. 2016, arXiv:1602.02282;
Vahdat & Kautz 2020, arXiv:2007.03898; Child 2021, arXiv:2011.10650.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import (
    ConditionalPrior,
    ImageSpec,
    Latent,
    LatentSpec,
    Posterior,
    Prior,
    PriorInputs,
    RelativePosterior,
    Trace,
)
from vae_lab.distributions.base import rsample_and_log_prob
from vae_lab.distributions.reshaped import unflatten_batch
from vae_lab.likelihoods import Likelihood
from vae_lab.models.base import Model, latent_spec, point_estimate, require_same_latent_kind
from vae_lab.networks.conditioning import LabelChannel, require_labelled_images
from vae_lab.networks.conv import patch_map
from vae_lab.networks.ladder import (
    BottomUp,
    LadderHead,
    LadderSizes,
    TopDownBlock,
    TopDownStart,
    initialize_convolutions,
    path_to_next_block,
)
from vae_lab.networks.ladder_sizes import resolutions
from vae_lab.priors.temperature import with_temperature


class StochasticLayer(nn.Module):
    """The posterior and the prior of one stochastic layer. is_top: whether it has no layer above."""

    def __init__(self, posterior: Posterior, prior: Prior, is_top: bool) -> None:
        super().__init__()
        self.posterior, self.prior = posterior, prior
        self.is_relative = isinstance(posterior, RelativePosterior)
        self.num_prior_params = prior.num_params if isinstance(prior, ConditionalPrior) and not is_top else 0

    def prior_distribution(self, params: Tensor | None, y: Tensor | None) -> Distribution:
        """p(z | layers above), batch (N,), or () if it does not depend on them. params: (N, num_prior_params, *map)."""
        if params is not None:
            assert isinstance(self.prior, ConditionalPrior)
            return self.prior.conditioned_on(params)
        return self.prior(PriorInputs(y, codes=self.posterior.codes))

    def require_compatible(self, shape: tuple[int, ...], conditional: bool) -> None:
        """ValueError: a prior that a ladder's layer cannot use, or a posterior that is incompatible with the prior."""
        if self.prior.needs_encoder:
            raise ValueError(
                f"model.prior: {type(self.prior).__name__} needs q(z|x), but the posterior of a ladder's layer depends "
                "on the layers above.\nChoose model/prior=conditional_gaussian, or a model with one layer"
            )
        if self.num_prior_params:
            return  # its parameters come from the layers above, which are not there yet
        prior = self.prior_distribution(None, torch.zeros(1, dtype=torch.int64) if conditional else None)
        if isinstance(self.posterior, RelativePosterior):
            self.posterior.relative_to(prior, torch.zeros(1, self.posterior.num_params, *shape[1:]))

    def posterior_distribution(self, params: Tensor, prior: Distribution) -> Distribution:
        """q(z | x, layers above), batch (N,). params: (N, num_params, *map)."""
        if isinstance(self.posterior, RelativePosterior):
            return self.posterior.relative_to(prior, params)
        return self.posterior(params)


# From p(z) of a layer, batch (N,) or (), and a function that computes q(z|x), to z (M, F, h, w).
LatentChoice = Callable[[Distribution, Callable[[], Distribution]], Tensor]


class LadderVAE(Model):
    """A top-down hierarchical variational autoencoder of residual blocks.

    image: the images' spec. latent_dim: features of z per position and layer. posterior(latent_dim) and prior(latent
    spec), called for each layer, and likelihood(image) are factories. layers: stochastic layers of each resolution,
    from fine to coarse, or one number for all. channels, strides, width, max_width: see `resolutions`. blocks: residual
    blocks after each stochastic layer, and as many bottom-up. squeeze: ratio of a block's channels to those of its 3x3
    convolutions. weight_norm: on all convolutions. conditional: whether both passes start with the labels y.
    patch_size: above 1, patches of the image become the channels of a smaller map, and are shuffled back at the end.
    ValueError: image sides that patches or strides do not divide, incompatible families, conditional without labels.
    """

    def __init__(
        self,
        image: ImageSpec,
        latent_dim: int,
        posterior: Callable[[int], Posterior],
        prior: Callable[[LatentSpec], Prior],
        likelihood: Callable[[ImageSpec], Likelihood],
        layers: int | Sequence[int] = 1,
        channels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        width: int = 32,
        max_width: int = 64,
        blocks: int = 1,
        squeeze: int = 2,
        weight_norm: bool = False,
        conditional: bool = False,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        _require_positive(latent_dim=latent_dim, blocks=blocks, squeeze=squeeze, width=width, max_width=max_width)
        if conditional:
            require_labelled_images(image)
        self.image, self.conditional = image, conditional
        _, *sides = patch_map(image.shape, patch_size, "model.patch_size")
        maps = resolutions((sides[0], sides[1]), layers, channels, strides, width, max_width, patch_size)
        sizes = LadderSizes(maps, blocks, squeeze)
        self.likelihood = likelihood(image)
        self.label_plane = LabelChannel(image) if conditional else None
        self.bottom_up = BottomUp(image.channels + int(conditional), sizes, patch_size)
        self.start = TopDownStart(sizes.resolutions[-1], image.num_classes if conditional else 0)
        self.layers, self.top_down_blocks = nn.ModuleList(), nn.ModuleList()
        self.specs: tuple[LatentSpec, ...] = ()
        for level, is_last in sizes.layer_positions():
            self._add(sizes, level, is_last, posterior(latent_dim), prior)
        self.head = LadderHead(sizes.resolutions[0], self.likelihood.num_channels, patch_size)
        for network in (self.bottom_up, self.top_down_blocks, self.head):
            initialize_convolutions(network, weight_norm)

    def _add(
        self, sizes: LadderSizes, level: int, is_last: bool, posterior: Posterior, prior: Callable[[LatentSpec], Prior]
    ) -> None:
        """Append a stochastic layer below the others. is_last: whether it is the last of its resolution."""
        spec = latent_spec(posterior, sizes.resolutions[level].sides, self.image)
        layer = StochasticLayer(posterior, prior(spec), is_top=not self.specs)
        require_same_latent_kind(posterior, layer.prior)
        layer.require_compatible(spec.shape, self.conditional)
        asked = (posterior.num_params, layer.num_prior_params, posterior.num_features, layer.is_relative)
        self.layers.append(layer)
        self.top_down_blocks.append(TopDownBlock(sizes, level, *asked, after=path_to_next_block(sizes, level, is_last)))
        self.specs += (spec,)

    @property
    def latents(self) -> tuple[LatentSpec, ...]:
        return self.specs

    def trace_sampler(self, x: Tensor, y: Tensor | None = None) -> Callable[[int], Trace]:
        features = self._features(x, y)
        return lambda num_samples: self._trace(features, num_samples, y)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z), batch (B,), with each layer's z at the point estimate of its posterior given the layers above."""
        return self.resample(x, (), y)

    def resample(
        self, x: Tensor, layers: Collection[int], y: Tensor | None = None, temperature: float | Sequence[float] = 1.0
    ) -> Distribution:
        """p(x|z), batch (B,), with z from the prior in some layers, in the others as in `reconstruct`.

        layers: indices from the top down. temperature: as of `sample`. ValueError: no such layer.
        """
        if wrong := [layer for layer in layers if not 0 <= layer < len(self.specs)]:
            raise ValueError(f"layers: found {wrong[0]}, expected 0 to {len(self.specs) - 1}")
        steps = iter(enumerate(self._temperatures(temperature)))

        def choose_latent(prior: Distribution, posterior: Callable[[], Distribution]) -> Tensor:
            layer, temperature = next(steps)
            if layer not in layers:
                return point_estimate(posterior())
            prior = with_temperature(prior, temperature)
            return prior.sample(() if prior.batch_shape else (len(x),))

        return self.likelihood(self.top_down_pass(choose_latent, y, self._features(x, y)))

    def sample(
        self, num_images: int, y: Tensor | None = None, temperature: float | Sequence[float] = 1.0
    ) -> Distribution:
        """p(x|z) at prior samples, batch (num_images,).

        temperature: multiplies the priors' scales; a number, or one for each stochastic layer from the top down.
        ValueError: not one temperature per layer. NotImplementedError: a prior without samples.
        """
        temperatures = iter(self._temperatures(temperature))

        def choose_latent(prior: Distribution, _: Callable[[], Distribution]) -> Tensor:
            prior = with_temperature(prior, next(temperatures))
            return prior.sample(() if prior.batch_shape else (num_images,))

        return self.likelihood(self.top_down_pass(choose_latent, y))

    def _features(self, x: Tensor, y: Tensor | None) -> list[Tensor]:
        features: list[Tensor] = self.bottom_up(x if self.label_plane is None else self.label_plane(x, y))
        return features

    def _trace(self, features: list[Tensor], num_samples: int, y: Tensor | None) -> Trace:
        latents: list[Latent] = []

        def choose_latent(prior: Distribution, flat_posterior: Callable[[], Distribution]) -> Tensor:
            """S samples at the top; below, one for each sample of the layers above."""
            copies = num_samples if latents else 1
            posterior = unflatten_batch(flat_posterior(), copies)
            z, log_q = rsample_and_log_prob(posterior, (num_samples,) if len(posterior.batch_shape) == 1 else ())
            latents.append(Latent(z, posterior, unflatten_batch(prior, copies), log_q))
            return z.flatten(0, 1)

        params = self.top_down_pass(choose_latent, y, features)
        return Trace(self.likelihood(params.unflatten(0, (num_samples, -1))), tuple(latents))

    def top_down_pass(self, choose_latent: LatentChoice, y: Tensor | None, features: Sequence[Tensor] = ()) -> Tensor:
        """Parameters of p(x|z), (N, num_channels, H, W), at the latents chosen by `choose_latent` from the top down.

        features: bottom-up, of each resolution; needed for the posteriors.
        """
        h: Tensor = self.start(y)
        for block, layer in self._steps():
            params, h = block.prior_params(h)
            prior = layer.prior_distribution(params, y)
            z = choose_latent(prior, partial(_posterior_distribution, block, layer, h, prior, features))
            h = block(repeat_samples(h, len(z)), z)
            y = None if y is None else repeat_samples(y, len(z))
        return cast("Tensor", self.head(h))

    def _steps(self) -> Iterator[tuple[TopDownBlock, StochasticLayer]]:
        return zip(
            cast("Sequence[TopDownBlock]", self.top_down_blocks),
            cast("Sequence[StochasticLayer]", self.layers),
            strict=True,
        )

    def _temperatures(self, temperature: float | Sequence[float]) -> Sequence[float]:
        count = len(self.specs)
        temperatures = temperature if isinstance(temperature, Sequence) else [temperature] * count
        if len(temperatures) != count:
            raise ValueError(
                f"temperature is a number, or one for each of the {count} stochastic layers from the top down; "
                f"found {len(temperatures)}"
            )
        return temperatures


def _posterior_distribution(
    block: TopDownBlock, layer: StochasticLayer, h: Tensor, prior: Distribution, features: Sequence[Tensor]
) -> Distribution:
    """q(z | x, layers above), with the batch (N,) of h, or (B,) at the top."""
    image_features = features[block.level]
    count = max(len(h), len(image_features))
    return layer.posterior_distribution(
        block.posterior_params(repeat_samples(h, count), repeat_samples(image_features, count)), prior
    )


def repeat_samples(values: Tensor, count: int) -> Tensor:
    """Repeat (N, ...) to (count, ...): S samples of B images are ordered as all images S times."""
    copies = count // len(values)
    return values if copies == 1 else values.repeat(copies, *(1 for _ in values.shape[1:]))


def _require_positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"model.{name} is at least 1; found {value}")

"""Models: networks, families and a prior put together; images in, a Trace out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.data.images import ImageSpec
from vae_lab.distributions import Likelihood, Posterior
from vae_lab.trace import Latent, Trace

# What a config leaves open (`_partial_`) and the model completes with sizes.
EncoderFactory = Callable[[tuple[int, int, int], int], nn.Module]
DecoderFactory = Callable[[int, tuple[int, int, int]], nn.Module]


class VAE(nn.Module):
    """A variational autoencoder with one stochastic layer of `latent_dim` dimensions.

    image: the images' spec; the other arguments are factories, completed here:
    encoder(in_shape, num_params), decoder(latent_dim, out_shape), posterior(latent_dim), prior(latent_dim),
    likelihood(image).
    """

    def __init__(
        self,
        image: ImageSpec,
        latent_dim: int,
        encoder: EncoderFactory,
        decoder: DecoderFactory,
        posterior: Callable[[int], Posterior],
        prior: Callable[[int], Callable[[], Distribution]],
        likelihood: Callable[[ImageSpec], Likelihood],
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"model.latent_dim: at least 1 latent dimension; found {latent_dim}")
        self.image = image
        self.latent_shape = (latent_dim,)
        self.posterior = posterior(latent_dim)
        self.prior = prior(latent_dim)
        self.likelihood = likelihood(image)
        self.encoder = encoder(image.shape, self.posterior.num_params)
        self.decoder = decoder(latent_dim, (self.likelihood.num_channels, image.height, image.width))

    def encode(self, x: Tensor) -> Distribution:
        """q(z|x): batch (B,), event (D,). x: (B, C, H, W)."""
        return self.posterior(self.encoder(x))

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z): batch of z's leading dimensions, event (C, H, W). z: (*batch, D)."""
        params: Tensor = self.decoder(z.reshape(-1, z.shape[-1]))
        return self.likelihood(params.reshape(*z.shape[:-1], *params.shape[1:]))

    def forward(self, x: Tensor, num_samples: int = 1) -> Trace:
        """S = num_samples posterior samples of each image, decoded. x: (B, C, H, W)."""
        return self.trace(self.encode(x), num_samples)

    def trace(self, posterior: Distribution, num_samples: int) -> Trace:
        """The same from q(z|x) on, so that an encoded image may be sampled again."""
        z = posterior.rsample((num_samples,))
        return Trace(self.decode(z), (Latent(z, posterior, self.prior()),))

    @torch.no_grad()
    def fit_likelihood(self, batches: Iterable[Tensor]) -> None:
        """Fit what the likelihood does not learn by gradient to training images x (B, C, H, W); mostly nothing."""
        fit = getattr(self.likelihood, "fit", None)
        if fit is None:
            return
        errors = [(self.decode(self.encode(x).rsample()).mean - x).square().mean((1, 2, 3)) for x in batches]
        if errors:
            fit(torch.cat(errors))

    @property
    def is_mass_function(self) -> bool:
        """Whether log p(x|z) is the log of a probability, so that bits per dimension can be told."""
        return self.likelihood.levels == self.image.levels

"""The variational autoencoder: encoder, posterior, prior, decoder and likelihood, one stochastic layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import ImageSpec, Latent, LatentSpec, Posterior, Prior, PriorInputs, Trace
from vae_lab.distributions.base import rsample_and_log_prob
from vae_lab.likelihoods import Likelihood
from vae_lab.models.base import (
    DecoderFactory,
    EncoderFactory,
    Model,
    latent_spec,
    point_estimate,
    require_label_support,
    require_same_latent_kind,
)
from vae_lab.networks.conditioning import LabelChannel, OneHotLabels, require_labelled_images
from vae_lab.networks.resnet import require_same_spatial_shape
from vae_lab.priors.temperature import with_temperature


class VAE(Model):
    """A variational autoencoder with one stochastic layer.

    image: the images' spec. latent_dim: D, features of z (per position, if the encoder's output is spatial).
    conditional: whether encoder, decoder and prior get the labels y. The other arguments are factories:
    encoder(in_shape, num_params), decoder(num_features, out_shape), posterior(latent_dim), prior(latent spec),
    likelihood(image). ValueError: a prior and a posterior over different kinds of latents; conditional without labels.
    """

    is_hierarchy = False

    def __init__(
        self,
        image: ImageSpec,
        latent_dim: int,
        encoder: EncoderFactory,
        decoder: DecoderFactory,
        posterior: Callable[[int], Posterior],
        prior: Callable[[LatentSpec], Prior],
        likelihood: Callable[[ImageSpec], Likelihood],
        conditional: bool = False,
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"model.latent_dim: at least 1 latent dimension; found {latent_dim}")
        self.image, self.conditional = image, conditional
        if conditional:
            require_labelled_images(image)
        self.posterior = posterior(latent_dim)
        self.likelihood = likelihood(image)
        self.label_plane = LabelChannel(image) if conditional else None
        self.label_features = OneHotLabels(image) if conditional else None
        channels = image.channels + int(conditional)  # a plane of the label
        self.encoder = encoder((channels, image.height, image.width), self.posterior.num_params)
        self.latent = latent_spec(self.posterior, getattr(self.encoder, "spatial_shape", ()), image)
        features = self.posterior.num_features + (image.num_classes if conditional else 0)
        self.decoder = decoder(features, (self.likelihood.num_channels, image.height, image.width))
        require_same_spatial_shape(self.encoder, self.decoder)
        self.prior = prior(self.latent)
        require_same_latent_kind(self.posterior, self.prior)
        require_label_support(self.prior, conditional)

    @property
    def latents(self) -> tuple[LatentSpec, ...]:
        return (self.latent,)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one z: (D,), or (D, h, w)."""
        return self.latent.shape

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z|x): batch (B,), event latent_shape. x: (B, C, H, W); y: labels (B,), for a conditional model."""
        return self.posterior(self.encoder(x if self.label_plane is None else self.label_plane(x, y)))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z): batch (*batch), event (C, H, W). z: (*batch, *latent_shape); y: labels (B,)."""
        batch = z.shape[: z.dim() - len(self.latent_shape)]
        features = z.reshape(-1, *self.latent_shape)
        if self.label_features is not None:
            features = self.label_features(features, y if y is None else y.expand(batch).reshape(-1))
        params: Tensor = self.decoder(features)
        return self.likelihood(params.reshape(*batch, *params.shape[1:]))

    def prior_distribution(self, y: Tensor | None = None) -> Distribution:
        """p(z), batch (); or (B,) if the prior depends on the labels y (B,)."""
        return self.prior(PriorInputs(y, self.encode, self.posterior.codes))

    def replace_prior(self, prior: Prior) -> Prior:
        """Replace p(z), as by one fitted to the latents; returns the old one. ValueError: another kind of latents."""
        require_same_latent_kind(self.posterior, prior)
        before, self.prior = self.prior, prior
        return before

    def trace_sampler(self, x: Tensor, y: Tensor | None = None) -> Callable[[int], Trace]:
        posterior = self.encode(x, y)
        return lambda num_samples: self.trace(posterior, num_samples, y)

    def trace(self, posterior: Distribution, num_samples: int, y: Tensor | None = None) -> Trace:
        """Trace of num_samples of a given q(z|x), so that images need not be encoded again."""
        z, log_q = rsample_and_log_prob(posterior, (num_samples,))
        return Trace(self.decode(z, y), (Latent(z, posterior, self.prior_distribution(y), log_q),))

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        return self.decode(point_estimate(self.encode(x, y)), y)

    def sample(self, num_images: int, y: Tensor | None = None, temperature: float = 1.0) -> Distribution:
        return self.decode(self.sample_latents(num_images, y, temperature), y)

    def sample_latents(self, num_images: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Prior samples, (num_images, *latent_shape)."""
        prior = with_temperature(self.prior_distribution(y), temperature)
        return prior.sample(() if prior.batch_shape else (num_images,))

"""Posterior families over discrete latents: vector quantisation and categorical variables."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import LatentKind, Posterior
from vae_lab.distributions.codes import OneHotCategoricals, OneHotCodes, QuantizedDelta
from vae_lab.posteriors.codebook import Codebook


class NearestCode(Posterior):
    """A point mass at the codes nearest to the encoder's output: VQ-VAE. van den Oord et al. 2017, arXiv:1711.00937.

    latent_dim: features of each position. code_dim: features of one code, a divisor of latent_dim; default latent_dim,
    one code per position. num_codes, decay, restart_below: see `Codebook`.
    Train it with the regularizer `commitment`, which keeps the encoder's output near its codes.

    ValueError: a code_dim that does not divide latent_dim, or options that `Codebook` rejects.
    """

    kind: LatentKind = "codes"
    codes: Codebook

    def __init__(
        self,
        latent_dim: int,
        num_codes: int = 512,
        code_dim: int | None = None,
        decay: float = 0.99,
        restart_below: float = 0.05,
    ) -> None:
        super().__init__()
        size = latent_dim if code_dim is None else code_dim
        if size < 1 or latent_dim % size:
            raise ValueError(
                f"model.posterior.code_dim={size}: not a divisor of model.latent_dim={latent_dim}; "
                f"choose a divisor of {latent_dim}, or null for one code per position"
            )
        self.num_params = self.num_features = latent_dim
        self.codes = Codebook(latent_dim // size, size, num_codes, decay, restart_below)

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, D, *map), the vectors to quantise. In training mode they update the codebook."""
        inputs = params.float()
        indices = self.codes(inputs)
        return QuantizedDelta(inputs, indices, self.codes.embed(indices))


class RelaxedCategorical(Posterior):
    """latent_dim categorical variables per position as one-hot vectors: Gumbel-softmax, or Concrete.

    Jang et al. 2017, arXiv:1611.01144; Maddison et al. 2017, arXiv:1611.00712. num_categories: of each variable.
    temperature: of the relaxation. In training mode samples are relaxed, which gives them a gradient, and the objective
    is no bound: the KL is that of the categorical variables, but the decoder gets relaxed samples. In evaluation mode
    samples are one-hot, and the reported ELBO is a bound for that discrete model.

    ValueError: fewer than two categories, temperature <= 0.
    """

    kind: LatentKind = "codes"
    codes: OneHotCodes

    def __init__(self, latent_dim: int, num_categories: int = 10, temperature: float = 2 / 3) -> None:
        super().__init__()
        if num_categories < 2:
            raise ValueError(f"model.posterior.num_categories is at least 2; found {num_categories}")
        if temperature <= 0:
            raise ValueError(f"model.posterior.temperature is above 0; found {temperature}")
        self.num_params = self.num_features = latent_dim * num_categories
        self.temperature = temperature
        self.codes = OneHotCodes(num_categories)

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, D K, *map), K logits of each variable."""
        logits = params.float().unflatten(1, (-1, self.codes.num_codes))
        return OneHotCategoricals(logits, self.temperature if self.training else None)

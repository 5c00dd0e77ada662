"""Point-mass posterior of a deterministic autoencoder."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import Posterior
from vae_lab.distributions.degenerate import Delta


class Deterministic(Posterior):
    """z = f(x), as in an autoencoder: q(z|x) is a point mass.

    `is_density` is False: log q(z|x) does not exist and is 0 by convention. With model/prior=flat the rate is then 0
    and the "elbo" is minus the distortion; with a prior that has a density (Wasserstein autoencoders, Tolstikhin et al.
    2018, arXiv:1711.01558) the rate is -log p(z). Neither is a bound on log p(x).
    """

    is_density = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, D, *map), the latents."""
        return Delta(params.float())

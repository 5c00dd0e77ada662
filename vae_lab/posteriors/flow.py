"""Flow posteriors: a diagonal Gaussian from the encoder, transformed by normalising flows.

On a feature map each position is transformed independently, with shared weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions.kl import register_kl

from vae_lab.core import Posterior
from vae_lab.distributions.flows import (
    FlowDistribution,
    Householder,
    InverseAutoregressive,
    Planar,
    without_autocast,
)
from vae_lab.distributions.gaussians import as_diagonal_normal, bounded_scale, diagonal_normal
from vae_lab.distributions.reshaped import to_spatial
from vae_lab.networks.autoregressive import MADE


class InverseAutoregressiveFlow(Posterior):
    """Inverse autoregressive flow, every second step in reversed order. Kingma et al. 2016, arXiv:1606.04934.

    context_features: encoder outputs that every step is conditioned on. hidden: widths of each step's network.
    The density of its own samples is cheap; that of any other z takes latent_dim passes.
    """

    def __init__(
        self, latent_dim: int, num_flows: int = 4, hidden: Sequence[int] = (320,), context_features: int = 64
    ) -> None:
        super().__init__()
        require_flows(num_flows)
        if context_features < 1:
            raise ValueError(f"model.posterior.context_features is at least 1; found {context_features}")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"model.posterior.hidden: at least one layer, of width at least 1; found {list(hidden)}")
        self.num_params, self.num_features = 2 * latent_dim + context_features, latent_dim
        start = InverseAutoregressive.GATE_START
        self.networks = nn.ModuleList(
            MADE(latent_dim, context_features, hidden, backwards=step % 2 == 1, shift=start)
            for step in range(num_flows)
        )

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D + context_features, *map): means, log variances, context."""
        base, context = split_base(params, self.num_features)
        flows = [InverseAutoregressive(cast("MADE", made), context) for made in self.networks]
        return to_spatial(FlowDistribution(base, flows))


class PlanarFlow(Posterior):
    """Planar flow with parameters from the encoder. Rezende & Mohamed 2015, arXiv:1505.05770."""

    def __init__(self, latent_dim: int, num_flows: int = 8) -> None:
        super().__init__()
        require_flows(num_flows)
        self.num_params, self.num_features = 2 * latent_dim + num_flows * (2 * latent_dim + 1), latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D + num_flows (2 D + 1), *map): means, log variances, then u, w, b of each step."""
        dims = self.num_features
        base, rest = split_base(params, dims)
        flows = [Planar(*step.split((dims, dims, 1), -1)) for step in rest.split(2 * dims + 1, -1)]
        return to_spatial(FlowDistribution(base, flows))


class HouseholderFlow(Posterior):
    """A Gaussian transformed by Householder reflections; many of them give a full covariance. Tomczak & Welling 2016.

    arXiv:1611.09630; there each step's vector is a linear function of the previous one, here all come from the encoder.
    """

    def __init__(self, latent_dim: int, num_flows: int = 4) -> None:
        super().__init__()
        require_flows(num_flows)
        if latent_dim < 2:
            raise ValueError(
                "model/posterior=householder needs vectors of at least 2 dimensions; "
                f"found model.latent_dim={latent_dim}: choose model/posterior=diagonal_gaussian"
            )
        self.num_params, self.num_features = (2 + num_flows) * latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, (2 + num_flows) D, *map): means, log variances, one vector per step."""
        base, rest = split_base(params, self.num_features)
        return to_spatial(ReflectedGaussian(base, [Householder(v) for v in rest.split(self.num_features, -1)]))


class ReflectedGaussian(FlowDistribution):
    """A diagonal Gaussian over vectors after reflections: still a Gaussian, with closed-form mean and variance."""

    def __init__(self, base: Distribution, reflections: Sequence[Householder]) -> None:
        super().__init__(base, reflections)
        self.reflections = reflections

    @property
    def mean(self) -> Tensor:
        mean = self.base.mean
        for reflection in self.reflections:
            mean = reflection.reflect(mean)
        return mean

    @property
    def mode(self) -> Tensor:
        return self.mean

    @property
    def variance(self) -> Tensor:
        """Variance of each dimension, (*batch, D): the diagonal of R diag(v) R^T.

        The product of the reflections is R = I - A U^T, a column for each (the WY representation). Bischof & Van Loan
        1987, SIAM J. Sci. Stat. Comp.
        """
        units, columns = [reflection.unit for reflection in self.reflections], list[Tensor]()
        for unit in units:
            columns = [*(Householder(unit).reflect(column) for column in columns), 2 * unit]
        a, u, v = torch.stack(columns, -1), torch.stack(units, -1), self.base.variance
        with without_autocast(v):
            diagonal: Tensor = v - 2 * v * (a * u).sum(-1) + (a @ (u.mT @ (v.unsqueeze(-1) * u)) * a).sum(-1)
        return diagonal.clamp(min=0)  # rounding can make a small difference of large variances negative


@register_kl(ReflectedGaussian, Independent)  # type: ignore[untyped-decorator]
def _kl_to_diagonal(q: ReflectedGaussian, p: Independent[Distribution]) -> Tensor:
    if as_diagonal_normal(p) is None:
        raise NotImplementedError
    squares = (q.variance + (q.mean - p.mean).square()) / p.variance
    # Reflections preserve the determinant of a covariance.
    kl: Tensor = (squares - 1 + p.variance.log() - q.base.variance.log()).sum(-1)
    return kl / 2


def require_flows(num_flows: int) -> None:
    """ValueError: num_flows < 1."""
    if num_flows < 1:
        raise ValueError(
            f"model.posterior.num_flows is at least 1; found {num_flows}: "
            "for no flows choose model/posterior=diagonal_gaussian"
        )


def split_base(params: Tensor, dims: int) -> tuple[Distribution, Tensor]:
    """Split (B, 2 D + R, *map) into a Gaussian, batch (B, *map) and event (D,), and the rest, (B, *map, R)."""
    mean, logvar, rest = params.float().movedim(1, -1).tensor_split((dims, 2 * dims), -1)
    return diagonal_normal(mean, bounded_scale(logvar), 1), rest

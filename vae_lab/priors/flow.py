"""A flow prior: a standard normal transformed by affine couplings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn
from torch.distributions import Distribution

from vae_lab.core import NO_INPUTS, LatentSpec, Prior, PriorInputs
from vae_lab.distributions.flows import AffineCoupling, FlowDistribution
from vae_lab.distributions.reshaped import to_shape
from vae_lab.networks.mlp import dense
from vae_lab.priors.fixed import StandardNormal


class FlowPrior(Prior):
    """A standard normal transformed by affine couplings of alternating halves. Dinh et al. 2017, arXiv:1605.08803.

    num_flows: couplings. hidden: widths of each coupling's network. A feature map is flattened. The initial prior is
    exactly N(0, I), since the last layer of each network is zero; the other layers get a gradient from the second step.

    ValueError: a latent of one dimension, num_flows < 2, no hidden layer.
    """

    def __init__(self, latent: LatentSpec, num_flows: int = 6, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        self.shape, dims = latent.shape, math.prod(latent.shape)
        if dims < 2:
            raise ValueError(
                f"model.prior: couplings need a latent of at least 2 dimensions; found {dims}: "
                "choose model.latent_dim=2 or more, or model/prior=gaussian_mixture"
            )
        if num_flows < 2:
            raise ValueError(
                f"model.prior.num_flows is at least 2, a coupling for each half of the latent; found {num_flows}"
            )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"model.prior.hidden: at least one layer, of width at least 1; found {list(hidden)}")
        first, second = dims - dims // 2, dims // 2
        ways = [(first, second), (second, first)]
        self.networks = nn.ModuleList(coupling_network(*ways[i % 2], hidden) for i in range(num_flows))
        self.base = StandardNormal(latent._replace(shape=(dims,)))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        flows = [AffineCoupling(network, swapped=i % 2 == 1) for i, network in enumerate(self.networks)]
        return to_shape(FlowDistribution(self.base(), flows), self.shape)


def coupling_network(kept: int, changed: int, hidden: Sequence[int]) -> nn.Module:
    """A network from the unchanged half to log scales and shifts of the other half; zero at initialisation."""
    last = nn.Linear(hidden[-1], 2 * changed)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*dense([kept, *hidden], nn.SiLU), last)

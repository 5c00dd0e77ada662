"""A prior made by a flow: a standard normal, transformed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import ReshapeTransform

from vae_lab.core import NO_INPUTS, LatentKind, LatentSpec, PriorInputs
from vae_lab.distributions.flows import AffineCoupling
from vae_lab.networks.mlp import dense


class FlowPrior(nn.Module):
    """A standard normal through affine couplings, each the other way round. Dinh et al. 2017, arXiv:1605.08803.

    num_flows: couplings. hidden: widths of each coupling's network. A map is flattened. It starts as N(0, I) exactly,
    for each network's last layer starts at zero; the layers before get a gradient from the second step on.

    ValueError: a latent of one dimension, which has no halves.
    """

    kinds: tuple[LatentKind, ...] = ("vector",)
    mean: Tensor
    scale: Tensor

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
            raise ValueError(f"model.prior.hidden are widths of at least one layer; found {list(hidden)}")
        first, second = dims - dims // 2, dims // 2
        ways = [(first, second), (second, first)]
        self.networks = nn.ModuleList(coupling_network(*ways[i % 2], hidden) for i in range(num_flows))
        # Not in a checkpoint: they are constants, and buffers only to follow the model to its device.
        self.register_buffer("mean", torch.zeros(dims), persistent=False)
        self.register_buffer("scale", torch.ones(dims), persistent=False)

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), batch ()."""
        base = Independent(Normal(self.mean, self.scale, validate_args=False), 1, validate_args=False)
        flows = [AffineCoupling(network, swapped=i % 2 == 1) for i, network in enumerate(self.networks)]
        shaped = ReshapeTransform(base.event_shape, torch.Size(self.shape))
        return TransformedDistribution(base, [*flows, shaped], validate_args=False)


def coupling_network(kept: int, changed: int, hidden: Sequence[int]) -> nn.Module:
    """From the half that a coupling keeps to log scales and shifts of the other; zero, at first."""
    last = nn.Linear(hidden[-1], 2 * changed)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*dense([kept, *hidden], nn.SiLU), last)

"""Priors over codes: uniform, and autoregressive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from vae_lab.core import NO_INPUTS, LatentKind, LatentSpec, Prior, PriorInputs
from vae_lab.distributions.base import UnvalidatedDistribution
from vae_lab.distributions.codes import CodeDistribution, independent_categoricals
from vae_lab.networks.autoregressive import CausalTransformer


class CodePrior(Prior):
    """A distribution over the code indices of a latent. ValueError: the latents are not codes; a call without codes."""

    kinds: tuple[LatentKind, ...] = ("codes",)

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        if latent.num_codes is None:
            raise ValueError(
                f"model.prior: {type(self).__name__} is a distribution over codes, but these latents are of kind "
                f"'{latent.kind}'.\n"
                "Choose model/posterior=nearest_code or relaxed_categorical, or model/prior=standard_normal"
            )
        self.shape, self.code_shape, self.num_codes = latent.shape, latent.code_shape, latent.num_codes

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        if inputs.codes is None:
            raise ValueError(
                "a prior over codes needs the posterior's codes: prior(PriorInputs(codes=posterior.codes))"
            )
        return CodeDistribution(self.index_distribution(), inputs.codes, self.shape)

    def index_distribution(self) -> Distribution:
        """Batch (), event code_shape."""
        raise NotImplementedError


class UniformCodes(CodePrior):
    """Every code has probability 1 / K, independently at each position."""

    logits: Tensor

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__(latent)
        logits = torch.zeros(*self.code_shape, self.num_codes)
        self.register_buffer("logits", logits, persistent=False)  # a constant; a buffer moves with the model

    def index_distribution(self) -> Distribution:
        return independent_categoricals(self.logits, len(self.code_shape))


class AutoregressiveCodes(CodePrior):
    """A causal transformer over codes in row-major order: each code given the previous ones.

    As in the second stage of VQ-VAE (arXiv:1711.00937, section 3.3), which uses a PixelCNN; the pre-norm transformer is
    that of GPT-2 (Radford et al. 2019). It handles maps and vectors, and is meant to be fitted to the codes of a
    trained model. Trained jointly with the model it learns the same, but passes no gradient to the encoder.
    width: features of each position. depth: layers. heads: attention heads of each layer; a divisor of width.
    """

    def __init__(self, latent: LatentSpec, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__(latent)
        if min(width, depth, heads) < 1 or width % heads:
            raise ValueError(
                "model.prior.width is a multiple of model.prior.heads, and width, heads and depth are at least 1; "
                f"found width={width}, heads={heads}, depth={depth}"
            )
        self.network = CausalTransformer(math.prod(self.code_shape), self.num_codes, width, depth, heads)

    def index_distribution(self) -> Distribution:
        return AutoregressiveIndices(self.network, self.code_shape)


class AutoregressiveIndices(UnvalidatedDistribution):
    """Autoregressive distribution over code indices in row-major order; batch (), event `shape` of T positions.

    network: indices (N, t), t <= T, to the logits of each of them and of the next, (N, min(t + 1, T), K).
    """

    def __init__(self, network: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        self.network = network
        super().__init__((), shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """In one pass of the network. value: int64 (*batch, *shape)."""
        indices = value.reshape(-1, self.event_shape.numel())
        log_mass: Tensor = _each(self.network(indices)).log_prob(indices).sum(-1)
        return log_mass.reshape(self.batch_of(value))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Indices (*sample_shape, *shape), sampled sequentially: one pass of the network per position."""
        indices = torch.empty(math.prod(sample_shape), 0, dtype=torch.int64)
        for _ in range(self.event_shape.numel()):
            logits = self.network(indices)[:, -1:]
            indices = torch.cat((indices.to(logits.device), _each(logits).sample()), 1)
        return indices.reshape(*sample_shape, *self.event_shape)


def _each(logits: Tensor) -> Categorical:
    return Categorical(logits=logits.float(), validate_args=False)

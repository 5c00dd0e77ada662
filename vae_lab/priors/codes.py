"""Priors over codes: each code alike, or each after those before it.

Of a temperature t, a code has its probability to the power of 1 / t, renormalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent

from vae_lab.core import NO_INPUTS, Codes, LatentKind, LatentSpec, PriorInputs
from vae_lab.distributions.codes import CodeDistribution
from vae_lab.networks.transformer import CausalTransformer
from vae_lab.priors.temperature import scale_prior

COLDEST = 1e-6  # a temperature at which logits that differ at all decide


def require_num_codes(latent: LatentSpec, prior: str) -> int:
    """K. ValueError: latents that do not consist of codes."""
    if latent.num_codes is None:
        raise ValueError(
            f"model.prior: {prior} is a distribution of codes, and these latents are of kind '{latent.kind}'.\n"
            "Choose model/posterior=nearest_code or relaxed_categorical, or model/prior=standard_normal"
        )
    return latent.num_codes


def require_codes(inputs: PriorInputs) -> Codes:
    """The codes that a prior's numbers mean. ValueError: it was called without."""
    if inputs.codes is None:
        raise ValueError("a prior over codes is told what they are: prior(PriorInputs(codes=posterior.codes))")
    return inputs.codes


class UniformCodes(nn.Module):
    """Each code with probability 1 / K, at each position alone. ValueError: latents that are no codes."""

    kinds: tuple[LatentKind, ...] = ("codes",)
    logits: Tensor

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape = latent.shape
        logits = torch.zeros(*latent.code_shape, require_num_codes(latent, "uniform_codes"))
        self.register_buffer("logits", logits, persistent=False)  # a constant, to follow the model to its device

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), batch ()."""
        each = Categorical(logits=self.logits, validate_args=False)
        index_distribution = Independent(each, self.logits.dim() - 1, validate_args=False)
        return UniformCodeDistribution(index_distribution, require_codes(inputs), self.shape)


class UniformCodeDistribution(CodeDistribution):
    """The same mass everywhere, so that no code has to be looked for."""

    def log_prob(self, value: Tensor) -> Tensor:
        """-positions ln K, (*batch)."""
        nowhere = torch.zeros(self.index_distribution.event_shape, dtype=torch.int64, device=value.device)
        return self.index_distribution.log_prob(nowhere).expand(value.shape[: value.dim() - len(self.event_shape)])


class AutoregressiveCodes(nn.Module):
    """Each code given those before it, in the order of rows, by a causal transformer.

    As in the second stage of VQ-VAE (arXiv:1711.00937, section 3.3), there a PixelCNN; the transformer, of layers that
    normalise first, is Radford et al.'s 2019 (GPT-2). It serves maps and vectors alike, and is meant to be fitted to a
    trained model's codes. Trained beside the model it learns the same, but no gradient reaches the encoder through it.
    width: features of each position. depth: layers. heads: of each layer's attention.

    ValueError: latents that are no codes, a width that `heads` does not divide.
    """

    kinds: tuple[LatentKind, ...] = ("codes",)

    def __init__(self, latent: LatentSpec, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        num_codes = require_num_codes(latent, "autoregressive_codes")
        if min(width, depth, heads) < 1 or width % heads:
            raise ValueError(
                "model.prior.width is a multiple of model.prior.heads, and depth, like both, at least 1; "
                f"found width={width}, heads={heads}, depth={depth}"
            )
        self.shape, self.code_shape = latent.shape, latent.code_shape
        self.network = CausalTransformer(math.prod(self.code_shape), num_codes, width, depth, heads)

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), batch ()."""
        index_distribution = Autoregressive(self.network, self.code_shape)
        return CodeDistribution(index_distribution, require_codes(inputs), self.shape)


class Autoregressive(Distribution):
    """Numbers of which each depends on those before it, in the order of rows; batch (), event `shape`.

    network: numbers (N, t), t <= T, to the logits of each one and of the next, (N, min(t + 1, T), K).
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, network: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        self.network = network
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log of a probability mass, in nats, (*batch), in one pass. value: int64 (*batch, *shape)."""
        indices = value.reshape(-1, self.event_shape.numel())
        log_mass: Tensor = _each(self.network(indices)).log_prob(indices).sum(-1)
        return log_mass.reshape(value.shape[: value.dim() - len(self.event_shape)])

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Numbers (*sample_shape, *shape), drawn one after the other: a pass through the network for each."""
        indices = torch.empty(math.prod(sample_shape), 0, dtype=torch.int64)
        for _ in range(self.event_shape.numel()):
            logits = self.network(indices)[:, -1:]
            indices = torch.cat((indices.to(logits.device), _each(logits).sample()), 1)
        return indices.reshape(*sample_shape, *self.event_shape)


def _each(logits: Tensor) -> Categorical:
    return Categorical(logits=logits.float(), validate_args=False)


@scale_prior.register
def _(prior: CodeDistribution, temperature: float) -> Distribution:
    return type(prior)(scale_prior(prior.index_distribution, temperature), prior.codes, prior.event_shape)


@scale_prior.register
def _(prior: Categorical, temperature: float) -> Distribution:
    return Categorical(logits=scale_logits(prior.logits, temperature), validate_args=False)


@scale_prior.register
def _(prior: Autoregressive, temperature: float) -> Distribution:
    network = prior.network
    return Autoregressive(lambda indices: scale_logits(network(indices), temperature), prior.event_shape)


def scale_logits(logits: Tensor, temperature: float) -> Tensor:
    """Of probabilities to the power of 1 / temperature; at 0, of the most probable alone."""
    return logits / max(temperature, COLDEST)

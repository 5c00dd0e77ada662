"""Discrete latents and distributions over them.

Everything here takes code latents with one batch dimension, z (N, F, *map) and indices (N, G, *map): a tensor alone
does not tell where the map begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, kl_divergence
from torch.distributions.kl import register_kl
from torch.nn.functional import one_hot

from vae_lab.core import Codes
from vae_lab.distributions.base import Delta, UnvalidatedDistribution


@dataclass(frozen=True)
class OneHotCodes:
    """One-hot groups of `num_codes` features."""

    num_codes: int

    def indices(self, z: Tensor) -> Tensor:
        """Index of the largest feature of each group, int64: (N, G K, *map) to (N, G, *map)."""
        return z.reshape(len(z), -1, self.num_codes, *z.shape[2:]).argmax(2)

    def embed(self, indices: Tensor) -> Tensor:
        """One-hot latents of code indices, float32: (N, G, *map) to (N, G K, *map)."""
        return merge_code_features(one_hot(indices, self.num_codes).float())


class QuantizedDelta(Delta):
    """A point mass at the codes nearest to an encoder's output; batch (B,), event (F, *map).

    The gradient of samples goes to the output unchanged (straight-through: van den Oord et al. 2017, arXiv:1711.00937,
    section 3.2). A probability mass function.
    """

    def __init__(self, inputs: Tensor, codes: Tensor, embedded: Tensor) -> None:
        """inputs: encoder output, (B, F, *map); codes: code indices, (B, G, *map); embedded: their latents."""
        self.inputs, self.codes = inputs, codes
        # The added term is exactly 0: values equal the codes' latents bit for bit.
        super().__init__(embedded + (inputs - inputs.detach()))

    def log_prob(self, value: Tensor) -> Tensor:
        """0 at the point mass, minus infinity elsewhere; no gradient."""
        there = (value == self.value).flatten(-len(self.event_shape)).all(-1)
        return torch.zeros_like(there, dtype=torch.float32).masked_fill(~there, -math.inf)

    def entropy(self) -> Tensor:
        return self.value.new_zeros(self.batch_shape)


class OneHotCategoricals(UnvalidatedDistribution):
    """Independent categorical variables, each a one-hot group of features; batch (B,), event (G K, *map).

    temperature: of relaxed samples, which have a gradient (Jang et al. 2017, arXiv:1611.01144; Maddison et al. 2017,
    arXiv:1611.00712); the largest feature of a group has the exact probabilities. None: one-hot samples, no gradient.
    """

    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float | None = None) -> None:
        """logits: (B, G, K, *map)."""
        self.temperature = temperature
        self._log_probs = logits.log_softmax(2).flatten(1, 2)
        self._logits = logits.movedim(2, -1)
        self._codes = OneHotCodes(logits.shape[2])
        super().__init__(self._log_probs.shape[:1], self._log_probs.shape[1:])

    @property
    def index_distribution(self) -> Distribution:
        """Distribution of the code indices: batch (B,), event (G, *map)."""
        return independent_categoricals(self._logits, self._logits.dim() - 2)

    @property
    def mode(self) -> Tensor:
        return self._codes.embed(self._codes.indices(self._log_probs))

    @property
    def mean(self) -> Tensor:
        return self._log_probs.exp()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        if self.temperature is None:
            indices = self.index_distribution.sample(shape)
            samples = one_hot(indices, self._logits.shape[-1]).float()
        else:  # torch's RelaxedOneHotCategorical reads from the device, and gumbel_softmax hides its noise from `Share`
            logits = self._logits.expand(*shape, *self._logits.shape)
            gumbels = -torch.empty_like(logits, memory_format=torch.contiguous_format).exponential_().log()
            samples = ((logits + gumbels) / self.temperature).softmax(-1)
        first = len(shape) + 1
        return samples.movedim(-1, first + 1).flatten(first, first + 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability mass of the variables whose features are largest in z, the batch shape.

        Where samples are relaxed, with the gradient of its mean, minus the entropy: the mass of drawn variables has no
        gradient on average, and that of z itself, linear between one-hot values, is not the entropy's.
        """
        flat = value.reshape(-1, *self.event_shape)
        one_hots = self._codes.embed(self._codes.indices(flat)).reshape(value.shape)
        log_mass = (one_hots * self._log_probs).flatten(-len(self.event_shape)).sum(-1)
        if self.temperature is None:
            return log_mass
        minus_entropy = -self.entropy()
        return log_mass.detach() + (minus_entropy - minus_entropy.detach())

    def entropy(self) -> Tensor:
        entropy: Tensor = self.index_distribution.entropy()
        return entropy


class CodeDistribution(UnvalidatedDistribution):
    """Latents whose code indices follow `index_distribution`; batch (), event (F, *map).

    index_distribution: event (G, *map). A probability mass function: `log_prob` is that of the codes nearest to the
    latent, which gets no gradient.
    """

    def __init__(self, index_distribution: Distribution, codes: Codes, shape: tuple[int, ...]) -> None:
        self.index_distribution, self.codes = index_distribution, codes
        super().__init__((), shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        indices = self.index_distribution.sample(torch.Size((math.prod(sample_shape),)))
        return self.codes.embed(indices).reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        indices = self.codes.indices(value.reshape(-1, *self.event_shape))
        log_mass: Tensor = self.index_distribution.log_prob(indices)
        return log_mass.reshape(self.batch_of(value))


def independent_categoricals(logits: Tensor, event_dims: int) -> Distribution:
    """Independent categorical variables, (*batch, *event) for logits (*batch, *event, K)."""
    return Independent(Categorical(logits=logits, validate_args=False), event_dims, validate_args=False)


def merge_code_features(values: Tensor) -> Tensor:
    """Merge the features of all codes of a position, (N, G, *map, F) to (N, G F, *map)."""
    return values.movedim(-1, 2).flatten(1, 2)


@register_kl(QuantizedDelta, CodeDistribution)  # type: ignore[untyped-decorator]
def _kl_quantized(p: QuantizedDelta, q: CodeDistribution) -> Tensor:
    """KL of a point mass: minus the log probability of its codes, (B,)."""
    return -q.index_distribution.log_prob(p.codes)


@register_kl(OneHotCategoricals, CodeDistribution)  # type: ignore[untyped-decorator]
def _kl_one_hots(p: OneHotCategoricals, q: CodeDistribution) -> Tensor:
    """NotImplementedError, so that the KL is estimated, where torch has none for the index distributions."""
    return kl_divergence(p.index_distribution, q.index_distribution)

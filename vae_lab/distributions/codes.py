"""Latents of finitely many values, and the distributions over them.

Of codes, everything here takes latents with one batch dimension, z (N, F, *map) and numbers (N, G, *map): where the map
begins cannot be told from a tensor alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    kl_divergence,
)
from torch.distributions.kl import register_kl
from torch.nn.functional import one_hot

from vae_lab.core import Codes


@dataclass(frozen=True)
class OneHotCodes:
    """Groups of `num_codes` features of which one is 1 and the others are 0."""

    num_codes: int

    def indices(self, z: Tensor) -> Tensor:
        """Which feature of each group is largest, int64: (N, G K, *map) to (N, G, *map)."""
        return z.reshape(len(z), -1, self.num_codes, *z.shape[2:]).argmax(2)

    def embed(self, indices: Tensor) -> Tensor:
        """The one-hot latents of numbers, float32: (N, G, *map) to (N, G K, *map)."""
        return merge_code_features(one_hot(indices, self.num_codes).float())


class QuantizedDelta(Distribution):
    """A point mass at the codes nearest to an encoder's output; batch (B,), event (F, *map).

    The gradient of its samples goes to the output as if nothing had been quantised ("straight through": van den Oord
    et al. 2017, arXiv:1711.00937, section 3.2).
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, inputs: Tensor, codes: Tensor, embedded: Tensor) -> None:
        """inputs: the encoder's output, (B, F, *map); codes: numbers (B, G, *map); embedded: their latents."""
        self.inputs, self.codes = inputs, codes
        # What is added is 0, so that the values are the codes' to the last bit.
        self._z = embedded + (inputs - inputs.detach())
        super().__init__(inputs.shape[:1], inputs.shape[1:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The one value, (B, F, *map)."""
        return self._z

    @property
    def mean(self) -> Tensor:
        """The one value, (B, F, *map)."""
        return self._z

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The one value as often as asked, (*sample_shape, B, F, *map)."""
        return self._z.expand(*sample_shape, *self._z.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """0 at the one value, minus infinity elsewhere; the batch shape. No gradient."""
        there = (value == self._z).flatten(-len(self.event_shape)).all(-1)
        return torch.zeros_like(there, dtype=torch.float32).masked_fill(~there, -math.inf)

    def entropy(self) -> Tensor:
        """0, (B,)."""
        return self._z.new_zeros(self.batch_shape)


class OneHotCategoricals(Distribution):
    """Independent categorical variables, each a group of features that is one-hot; batch (B,), event (G K, *map).

    temperature: samples are relaxed, with a gradient (Jang et al. 2017, arXiv:1611.01144; Maddison et al. 2017,
    arXiv:1611.00712); of which feature is largest, their probabilities are exact. None: one-hot, without a gradient.
    Whatever the samples, `log_prob` is of the categorical variables.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float | None = None) -> None:
        """logits: (B, G, K, *map)."""
        self.temperature = temperature
        self._log_probs = logits.log_softmax(2).flatten(1, 2)
        self._logits = logits.movedim(2, -1)
        self._codes = OneHotCodes(logits.shape[2])
        super().__init__(self._log_probs.shape[:1], self._log_probs.shape[1:], validate_args=False)

    @property
    def index_distribution(self) -> Distribution:
        """Of the code numbers: batch (B,), event (G, *map)."""
        return Independent(
            Categorical(logits=self._logits, validate_args=False), self._logits.dim() - 2, validate_args=False
        )

    @property
    def mode(self) -> Tensor:
        """The most probable one-hot vectors, (B, G K, *map)."""
        return self._codes.embed(self._codes.indices(self._log_probs))

    @property
    def mean(self) -> Tensor:
        """The probabilities, (B, G K, *map)."""
        return self._log_probs.exp()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """(*sample_shape, B, G K, *map)."""
        shape = torch.Size(sample_shape)
        if self.temperature is None:
            drawn: Tensor = OneHotCategorical(logits=self._logits, validate_args=False).sample(shape)
        else:
            temperature = torch.full((), self.temperature, device=self._logits.device)
            drawn = RelaxedOneHotCategorical(temperature, logits=self._logits, validate_args=False).rsample(shape)
        first = len(shape) + 1
        return drawn.movedim(-1, first + 1).flatten(first, first + 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of z times log probabilities, the batch shape: of one-hot z the log of their probability mass.

        Of relaxed z it is no density, but linear in z between the masses of one-hot ones.
        """
        return (value * self._log_probs).flatten(-len(self.event_shape)).sum(-1)

    def entropy(self) -> Tensor:
        """In nats, (B,)."""
        entropy: Tensor = self.index_distribution.entropy()
        return entropy


class CodeDistribution(Distribution):
    """Latents of codes whose numbers have a distribution of their own; batch (), event (F, *map).

    numbers: event (G, *map). A mass function: `log_prob` takes a latent for the codes that are nearest to it, so no
    gradient reaches it.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, index_distribution: Distribution, codes: Codes, shape: tuple[int, ...]) -> None:
        self.index_distribution, self.codes = index_distribution, codes
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """(*sample_shape, F, *map)."""
        indices = self.index_distribution.sample(torch.Size((math.prod(sample_shape),)))
        return self.codes.embed(indices).reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log of a probability mass, in nats, (*batch). value: (*batch, F, *map)."""
        indices = self.codes.indices(value.reshape(-1, *self.event_shape))
        batch = value.shape[: value.dim() - len(self.event_shape)]
        log_mass: Tensor = self.index_distribution.log_prob(indices)
        return log_mass.reshape(batch)


def merge_code_features(values: Tensor) -> Tensor:
    """Features of each code as features of each place, (N, G, *map, F) to (N, G F, *map)."""
    return values.movedim(-1, 2).flatten(1, 2)


@register_kl(QuantizedDelta, CodeDistribution)  # type: ignore[untyped-decorator]
def _kl_quantized(p: QuantizedDelta, q: CodeDistribution) -> Tensor:
    """Of a point mass: how improbable its codes are, (B,)."""
    return -q.index_distribution.log_prob(p.codes)


@register_kl(OneHotCategoricals, CodeDistribution)  # type: ignore[untyped-decorator]
def _kl_one_hots(p: OneHotCategoricals, q: CodeDistribution) -> Tensor:
    """NotImplementedError, which asks for an estimate, where torch knows none of the numbers' distributions."""
    return kl_divergence(p.index_distribution, q.index_distribution)

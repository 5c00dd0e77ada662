"""The objective to minimise, the only place where a bound is negated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_lab.core import RegularizerInputs, Trace, TrainingSpec
from vae_lab.objectives.bounds import (
    Bound,
    BoundTerms,
    DistortionConstraint,
    KLEstimate,
    Weight,
    bound_terms,
    capacity_bound,
    doubly_reparameterized_bound,
    elbo,
    importance_weighted_bound,
    kl_per_dimension,
)
from vae_lab.objectives.regularizers.base import AdversarialRegularizer, Regularizer
from vae_lab.objectives.schedules import Constant, Schedule
from vae_lab.utils.callables import unwrap_partial

# Their names in objective/bound.
IMPORTANCE_WEIGHTED: dict[Bound, str] = {
    importance_weighted_bound: "importance_weighted",
    doubly_reparameterized_bound: "dreg",
}


class Weights(NamedTuple):
    """The scheduled weights of one step."""

    beta: Weight = 1.0
    capacity: Weight = 0.0  # nats


class Objective(nn.Module):
    """A bound with its KL weighted by a beta schedule, clamped by free bits or held at a capacity; plus regularizers.

    bound: elbo, importance_weighted_bound or doubly_reparameterized_bound. num_samples: S, posterior samples per image.
    beta: Higgins et al. 2017. free_bits: nats per latent dimension below which the batch mean of the KL is not
    minimised (Kingma et al. 2016, arXiv:1606.04934, eq. 15; see `apply_free_bits`), of each batch separately.
    capacity: target of the batch mean of the KL in nats, times a schedule, with beta as the strength (Burgess et al.
    2018, arXiv:1804.03599). kl: closed_form or monte_carlo. constraint: weights the distortion instead of the KL.
    regularizers: factories by name, called with the training spec.
    """

    def __init__(
        self,
        bound: Bound,
        beta_schedule: Schedule,
        spec: TrainingSpec | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        capacity: float | None = None,
        capacity_schedule: Schedule | None = None,
        num_samples: int = 1,
        kl: KLEstimate = "closed_form",
        constraint: Callable[[TrainingSpec], DistortionConstraint] | None = None,
        regularizers: Mapping[str, Callable[[TrainingSpec], Regularizer] | None] | None = None,
    ) -> None:
        super().__init__()
        _require(num_samples >= 1, f"objective.num_samples is at least 1; found {num_samples}")
        _require(beta >= 0, f"objective.beta is at least 0; found {beta}")
        _require(free_bits >= 0, f"objective.free_bits is at least 0 (nats per dimension); found {free_bits}")
        _require(
            free_bits == 0 or kl == "closed_form",
            "objective.free_bits needs each dimension's KL in closed form; found objective.kl=monte_carlo: "
            "set objective.kl=closed_form",
        )
        _require(capacity is None or capacity >= 0, f"objective.capacity is at least 0 (nats); found {capacity}")
        bound = unwrap_partial(bound)
        _require_bound(bound, num_samples, free_bits, capacity, constraint is not None)
        self.bound: Bound = bound
        self.beta, self.beta_schedule = beta, beta_schedule
        self.capacity, self.capacity_schedule = capacity, capacity_schedule or Constant()
        self.free_bits, self.num_samples, self.kl = free_bits, num_samples, kl
        latents = spec.latents if spec else ()
        self.num_codes = [math.prod(each.code_shape) if each.num_codes else None for each in latents]  # of each layer
        _require(
            spec is not None or not (constraint or regularizers),
            "objective: the constraint and regularizers need a TrainingSpec, and spec is None",
        )
        self.constraint = constraint(spec) if constraint and spec else None
        built = {name: make(spec) for name, make in (regularizers or {}).items() if spec and make is not None}
        self.regularizers = nn.ModuleDict(built)
        _require(
            bound is not doubly_reparameterized_bound or not built,
            "objective/bound=dreg scales every gradient that reaches z, including a regularizer's: choose "
            "objective/bound=importance_weighted, or remove the regularizers",
        )

    def terms(self, trace: Trace, x: Tensor) -> BoundTerms:
        """The terms of the bound with this objective's KL estimate, in nats per image."""
        path = self.bound is doubly_reparameterized_bound
        return bound_terms(trace, x, self.kl, log_ratio=self.bound is not elbo, path_gradient=path)

    def forward(
        self, inputs: RegularizerInputs, terms: BoundTerms, weights: Weights
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, (B,), at the weights of this step (`weights_at`), and the value of each regularizer, ().

        The loss is in nats per image if there are no regularizers.
        """
        loss = -self._bound(inputs.trace, terms, weights)
        values = {}
        for name, regularizer in self.regularizers.items():
            penalty = regularizer(inputs)
            loss = loss + regularizer.weight * penalty
            values[name] = penalty.detach().mean()
        return loss, values

    def _bound(self, trace: Trace, terms: BoundTerms, weights: Weights) -> Tensor:
        if self.free_bits:
            terms = terms._replace(kl=apply_free_bits(trace, terms, self.free_bits, self.num_codes))
        if self.constraint is not None:
            constrained: Tensor = self.constraint(terms, weights.beta)
            return constrained
        if self.capacity is not None:
            return capacity_bound(terms, weights.beta, weights.capacity)
        return self.bound(terms, weights.beta)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor | None:
        """Sum of the discriminator losses on detached latents and images, (); None without discriminators."""
        losses = [discriminator.discriminator_loss(inputs) for discriminator in self.discriminators]
        return torch.stack(losses).sum() if losses else None

    @property
    def discriminators(self) -> list[AdversarialRegularizer]:
        return [part for part in self.regularizers.values() if isinstance(part, AdversarialRegularizer)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.regularizers)

    def weights_at(self, step: int, total_steps: int | None) -> Weights:
        """Weights at optimiser step `step`; total_steps: see `Schedule`."""
        beta = self.beta * self.beta_schedule(step, total_steps)
        return Weights(beta, (self.capacity or 0.0) * self.capacity_schedule(step, total_steps))


def apply_free_bits(
    trace: Trace, terms: BoundTerms, free_bits: float, num_codes: Sequence[int | None] | None = None
) -> Tensor:
    """KL with batch means of at least `free_bits` per dimension of z, (L, S, B).

    Where q or p does not factorise, a layer's KL as a whole is at least `free_bits` times its number of dimensions, or
    of codes (not of their features). num_codes: in one z of each layer; None for a layer without codes.
    """
    layers = []
    for latent, kl, codes in zip(trace.latents, terms.kl, num_codes or [None] * len(terms.kl), strict=True):
        per_dimension, event = kl_per_dimension(latent), latent.posterior.event_shape
        if per_dimension is None:
            floored = kl.mean().clamp(min=free_bits * (codes or event.numel()))
        else:
            floored = per_dimension.flatten(0, -len(event) - 1).mean(0).clamp(min=free_bits).sum()
        layers.append(floored.expand_as(kl))
    return torch.stack(layers)


def _require_bound(bound: Bound, num_samples: int, free_bits: float, capacity: float | None, constrained: bool) -> None:
    name = IMPORTANCE_WEIGHTED.get(bound)
    if name:
        _require(
            num_samples > 1,
            f"objective/bound={name} averages over samples: objective.num_samples must be at least 2; "
            f"found {num_samples}",
        )
        _require(
            free_bits == 0,
            "objective.free_bits clamps a KL, and the importance-weighted bound has none: choose objective/bound=elbo",
        )
    _require(
        not name or (capacity is None and not constrained),
        f"objective/bound={name} has no separate KL term for objective.capacity or objective/constraint: "
        "choose objective/bound=elbo",
    )
    _require(capacity is None or not constrained, "objective.capacity and objective/constraint exclude each other")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)

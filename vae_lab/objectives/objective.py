"""Objectives: what is minimised, and the only place where a bound is negated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vae_lab.core import RegularizerInputs, Trace, TrainingSpec
from vae_lab.objectives.bounds import (
    Bound,
    BoundTerms,
    KLEstimate,
    Weight,
    bound_terms,
    capacity_bound,
    doubly_reparameterized_bound,
    elbo,
    importance_weighted_bound,
    kl_per_dimension,
)
from vae_lab.objectives.constraints import Constraint
from vae_lab.objectives.regularizers.base import AdversarialRegularizer, Regularizer
from vae_lab.objectives.schedules import Constant, Schedule
from vae_lab.utils.callables import unwrap_partial

IMPORTANCE_WEIGHTED = (importance_weighted_bound, doubly_reparameterized_bound)


class Weights(NamedTuple):
    """What the schedules give a step."""

    beta: Weight = 1.0
    capacity: Weight = 0.0  # nats


class Objective(nn.Module):
    """A bound whose KL is weighted by beta times a schedule, floored by free bits or held at a capacity; regularizers.

    bound: elbo, importance_weighted_bound or doubly_reparameterized_bound. num_samples: S, posterior samples of each
    image. beta: Higgins et al. 2017. free_bits: nats per latent dimension below which the KL, averaged over the batch,
    is not pushed (Kingma et al. 2016, arXiv:1606.04934, eq. 15); under accumulation, over each batch alone. capacity:
    nats that the KL of a batch is held at, times a schedule, with beta as the strength (Burgess et al. 2018,
    arXiv:1804.03599). kl: closed_form or monte_carlo. constraint: weighs the distortion in beta's place. regularizers:
    by name; factories, completed with the setting.
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
        constraint: Callable[[TrainingSpec], Constraint] | None = None,
        regularizers: Mapping[str, Callable[[TrainingSpec], Regularizer] | None] | None = None,
    ) -> None:
        super().__init__()
        _require(num_samples >= 1, f"objective.num_samples is at least 1; found {num_samples}")
        _require(beta >= 0, f"objective.beta is a weight of at least 0; found {beta}")
        _require(free_bits >= 0, f"objective.free_bits are nats per dimension, at least 0; found {free_bits}")
        _require(
            free_bits == 0 or kl == "closed_form",
            "objective.free_bits floors the KL of each dimension in closed form: objective.kl=monte_carlo has none",
        )
        _require(capacity is None or capacity >= 0, f"objective.capacity are nats, at least 0; found {capacity}")
        bound = unwrap_partial(bound)
        _require_bound(bound, num_samples, free_bits, capacity, constraint is not None)
        self.bound: Bound = bound
        self.beta, self.beta_schedule = beta, beta_schedule
        self.capacity, self.capacity_schedule = capacity, capacity_schedule or Constant()
        self.free_bits, self.num_samples, self.kl = free_bits, num_samples, kl
        _require(spec is not None or not (constraint or regularizers), "parts of an objective need its setting")
        self.constraint = constraint(spec) if constraint and spec else None
        built = {name: make(spec) for name, make in (regularizers or {}).items() if spec and make is not None}
        self.regularizers = nn.ModuleDict(built)  # type: ignore[arg-type]  # each of them is a module
        _require(
            bound is not doubly_reparameterized_bound or not built,
            "objective/bound=dreg scales every gradient that reaches z, a regularizer's too: choose "
            "objective/bound=importance_weighted, or leave the regularizers out",
        )

    def terms(self, trace: Trace, x: Tensor) -> BoundTerms:
        """The terms of the bound, in nats per image, with this objective's estimate of the KL."""
        path = self.bound is doubly_reparameterized_bound
        return bound_terms(trace, x, self.kl, log_ratio=self.bound is not elbo, path_gradient=path)

    def forward(
        self, inputs: RegularizerInputs, terms: BoundTerms, weights: Weights
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, (B,), with the weights of this step (`weights_at`); and the regularizers' values, () each.

        In nats per image where only a bound is minimised.
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
            terms = terms._replace(kl=apply_free_bits(trace, terms, self.free_bits))
        if self.constraint is not None:
            return self.constraint(terms, weights.beta)
        if self.capacity is not None:
            return capacity_bound(terms, weights.beta, weights.capacity)
        return self.bound(terms, weights.beta)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor | None:
        """What the discriminators minimise, (), of detached latents and images; None without discriminators."""
        losses = [discriminator.discriminator_loss(inputs) for discriminator in self.discriminators]
        return torch.stack(losses).sum() if losses else None

    @property
    def discriminators(self) -> list[AdversarialRegularizer]:
        """The regularizers that have networks of their own."""
        parts = cast("list[AdversarialRegularizer]", list(self.regularizers.values()))
        return [part for part in parts if hasattr(part, "discriminator_loss")]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the regularizers."""
        return tuple(self.regularizers)

    def weights_at(self, step: int, total_steps: int | None) -> Weights:
        """The weights at optimiser step `step`."""
        beta = self.beta * self.beta_schedule(step, total_steps)
        return Weights(beta, (self.capacity or 0.0) * self.capacity_schedule(step, total_steps))


def apply_free_bits(trace: Trace, terms: BoundTerms, free_bits: float) -> Tensor:
    """KL with the batch mean of each dimension at least `free_bits`, (L, S, B); without dimensions, of each layer."""
    layers = []
    for latent, kl in zip(trace.latents, terms.kl, strict=True):
        per_dimension = kl_per_dimension(latent)
        event = len(latent.posterior.event_shape)
        groups = kl.mean().unsqueeze(0) if per_dimension is None else per_dimension.flatten(0, -event - 1).mean(0)
        layers.append(groups.clamp(min=free_bits).sum().expand_as(kl))
    return torch.stack(layers)


def _require_bound(bound: Bound, num_samples: int, free_bits: float, capacity: float | None, constrained: bool) -> None:
    if bound in IMPORTANCE_WEIGHTED:
        _require(
            num_samples > 1,
            f"objective/bound={_name(bound)} averages over samples: objective.num_samples must be at least 2; "
            f"found {num_samples}",
        )
        _require(
            free_bits == 0,
            "objective.free_bits floors a KL, and the importance-weighted bound has none: choose objective/bound=elbo",
        )
    _require(
        bound is elbo or (capacity is None and not constrained),
        f"objective/bound={_name(bound)} has no KL of its own to hold at a capacity or to trade for a distortion: "
        "choose objective/bound=elbo",
    )
    _require(capacity is None or not constrained, "objective.capacity and objective/constraint exclude each other")


def _name(bound: Bound) -> str:
    return {"importance_weighted_bound": "importance_weighted", "doubly_reparameterized_bound": "dreg"}.get(
        getattr(bound, "__name__", ""), "elbo"
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)

"""Objectives: what is minimised, and the only place where a bound is negated."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_lab.bounds import (
    Bound,
    BoundTerms,
    KLEstimate,
    Weight,
    bound_terms,
    elbo,
    importance_weighted_bound,
    kl_per_dimension,
)
from vae_lab.callables import plain
from vae_lab.schedules import Schedule
from vae_lab.trace import Trace


class Objective:
    """A bound whose KL is weighted by beta times a schedule and floored by free bits.

    bound: elbo or importance_weighted_bound. num_samples: S, posterior samples of each image.
    beta: Higgins et al. 2017. free_bits: nats per latent dimension below which the KL, averaged over the batch, is not
    pushed (Kingma et al. 2016, arXiv:1606.04934, eq. 15); under accumulation, over each batch alone. kl: closed_form or
    monte_carlo.
    """

    def __init__(
        self,
        bound: Bound,
        beta_schedule: Schedule,
        beta: float = 1.0,
        free_bits: float = 0.0,
        num_samples: int = 1,
        kl: KLEstimate = "closed_form",
    ) -> None:
        _require(num_samples >= 1, f"objective.num_samples is at least 1; found {num_samples}")
        _require(beta >= 0, f"objective.beta is a weight of at least 0; found {beta}")
        _require(free_bits >= 0, f"objective.free_bits are nats per dimension, at least 0; found {free_bits}")
        _require(
            free_bits == 0 or kl == "closed_form",
            "objective.free_bits floors the KL of each dimension in closed form: objective.kl=monte_carlo has none",
        )
        bound = plain(bound)
        if bound is importance_weighted_bound:
            _require(
                num_samples > 1,
                "objective/bound=importance_weighted averages over samples: objective.num_samples must be at "
                f"least 2; found {num_samples}",
            )
            _require(
                free_bits == 0,
                "objective.free_bits floors a KL, and the importance-weighted bound has none: "
                "choose objective/bound=elbo",
            )
        self.bound: Bound = bound
        self.beta, self.beta_schedule = beta, beta_schedule
        self.free_bits, self.num_samples, self.kl = free_bits, num_samples, kl

    def terms(self, trace: Trace, x: Tensor) -> BoundTerms:
        """The terms of the bound, in nats per image, with this objective's estimate of the KL."""
        return bound_terms(trace, x, self.kl, log_ratio=self.bound is not elbo)

    def __call__(self, trace: Trace, terms: BoundTerms, beta: Weight) -> Tensor:
        """What is minimised, (B,) in nats per image, with the weight `beta` of this step (`beta_at`)."""
        if self.free_bits:
            terms = terms._replace(kl=floored_kl(trace, terms, self.free_bits))
        return -self.bound(terms, beta)

    def beta_at(self, step: int, total_steps: int | None) -> float:
        """The weight of the KL at optimiser step `step`."""
        return self.beta * self.beta_schedule(step, total_steps)


def floored_kl(trace: Trace, terms: BoundTerms, free_bits: float) -> Tensor:
    """KL with the batch mean of each dimension at least `free_bits`, (L, S, B); without dimensions, of each layer."""
    layers = []
    for latent, kl in zip(trace.latents, terms.kl, strict=True):
        per_dimension = kl_per_dimension(latent)
        groups = kl.mean().unsqueeze(0) if per_dimension is None else per_dimension.flatten(0, -2).mean(0)
        layers.append(groups.clamp(min=free_bits).sum().expand_as(kl))
    return torch.stack(layers)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)

"""Bounds on log p(x), written once for every model.

S posterior samples, B images, L stochastic layers; every term is in nats per image.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from vae_lab.trace import Latent, Trace

KLEstimate = Literal["closed_form", "monte_carlo"]


class BoundTerms(NamedTuple):
    """What a bound is made of."""

    log_px: Tensor  # log p(x|z), (S, B)
    log_ratio: Tensor  # log q(z|x) - log p(z), (S, B)
    kl: Tensor  # KL(q || p) of each layer, (L, S, B)


class Bound(Protocol):
    """Terms to a lower bound on log p(x)."""

    def __call__(self, terms: BoundTerms, beta: float = 1.0) -> Tensor:
        """(B,), larger is better."""
        ...


def bound_terms(trace: Trace, x: Tensor, kl: KLEstimate = "closed_form") -> BoundTerms:
    """Score the images x (B, C, H, W) under the trace.

    kl: `closed_form` where torch knows one (else the Monte-Carlo estimate), or `monte_carlo`:
    log q(z|x) - log p(z) at the sampled z.
    """
    ratios = [latent.log_q - latent.prior.log_prob(latent.z) for latent in trace.latents]
    kls = [
        closed_form_kl(latent, ratio) if kl == "closed_form" else ratio
        for latent, ratio in zip(trace.latents, ratios, strict=True)
    ]
    log_ratio = ratios[0] if len(ratios) == 1 else torch.stack(ratios).sum(0)
    return BoundTerms(trace.likelihood.log_prob(x), log_ratio, torch.stack(kls))


def closed_form_kl(latent: Latent, ratio: Tensor) -> Tensor:
    """KL(q || p), (S, B); the Monte-Carlo estimate `ratio` where no closed form is known."""
    per_dimension = kl_per_dimension(latent)
    if per_dimension is not None:
        return per_dimension.sum(-1).expand_as(ratio)
    try:
        return kl_divergence(latent.posterior, latent.prior).expand_as(ratio)
    except NotImplementedError:
        return ratio


def kl_per_dimension(latent: Latent) -> Tensor | None:
    """KL of each latent dimension, (B, D) or (S, B, D); None where q and p do not factorise."""
    posterior, prior = latent.posterior, latent.prior
    if not (_factorises(posterior) and _factorises(prior)):
        return None
    return kl_divergence(posterior.base_dist, prior.base_dist)  # type: ignore[attr-defined]


def _factorises(distribution: object) -> bool:
    return isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal)


def elbo(terms: BoundTerms, beta: float = 1.0) -> Tensor:
    """E_q[log p(x|z)] - beta KL(q || p), (B,); in expectation <= log p(x) if beta >= 1."""
    return (terms.log_px - beta * terms.kl.sum(0)).mean(0)


def importance_weighted_bound(terms: BoundTerms, beta: float = 1.0) -> Tensor:
    """log (1/S) sum_s p(x, z_s) / q(z_s|x), (B,). Burda et al. 2016, arXiv:1509.00519.

    beta tempers the ratio q/p; at 1 the bound rises with S to log p(x).
    """
    log_weights = terms.log_px - beta * terms.log_ratio
    return log_weights.logsumexp(0) - math.log(len(log_weights))

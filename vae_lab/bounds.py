"""Bounds on log p(x), written once for every model.

S posterior samples, B images, L stochastic layers; every term is in nats per image.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from vae_lab.trace import Latent, Trace

KLEstimate = Literal["closed_form", "monte_carlo"]
Weight = float | Tensor  # a number; a tensor () where a step is compiled or replayed


class BoundTerms(NamedTuple):
    """What a bound is made of."""

    log_px: Tensor  # log p(x|z), (S, B)
    log_ratio: Tensor | None  # log q(z|x) - log p(z), (S, B); None where the bound does not read it
    kl: Tensor  # KL(q || p) of each layer, (L, S, B)


class Bound(Protocol):
    """Terms to a lower bound on log p(x)."""

    def __call__(self, terms: BoundTerms, beta: Weight = 1.0) -> Tensor:
        """(B,), larger is better."""
        ...


def bound_terms(trace: Trace, x: Tensor, kl: KLEstimate = "closed_form", log_ratio: bool = True) -> BoundTerms:
    """Score the images x (B, C, H, W) under the trace.

    kl: `closed_form` where torch knows one (else the Monte-Carlo estimate), or `monte_carlo`:
    log q(z|x) - log p(z) at the sampled z. log_ratio: whether the bound reads it.
    """
    log_px = trace.likelihood.log_prob(x)
    estimate = closed_form_kl if kl == "closed_form" else monte_carlo_kl
    kls = [estimate(latent).expand_as(log_px) for latent in trace.latents]
    ratio = functools.reduce(torch.add, [latent.log_ratio for latent in trace.latents]) if log_ratio else None
    return BoundTerms(log_px, ratio, kls[0].unsqueeze(0) if len(kls) == 1 else torch.stack(kls))


def monte_carlo_kl(latent: Latent) -> Tensor:
    """The estimate of KL(q || p) at the sampled z, (S, B)."""
    return latent.log_ratio


def closed_form_kl(latent: Latent) -> Tensor:
    """KL(q || p), (B,) or (S, B); the Monte-Carlo estimate where no closed form is known."""
    per_dimension = kl_per_dimension(latent)
    if per_dimension is not None:
        return per_dimension.sum(-1)
    try:
        return kl_divergence(latent.posterior, latent.prior)
    except NotImplementedError:
        return latent.log_ratio


def kl_per_dimension(latent: Latent) -> Tensor | None:
    """KL of each latent dimension, (B, D) or (S, B, D); None where q and p do not factorise."""
    posterior, prior = latent.posterior, latent.prior
    if not (_factorises(posterior) and _factorises(prior)):
        return None
    return kl_divergence(posterior.base_dist, prior.base_dist)  # type: ignore[attr-defined]


def _factorises(distribution: object) -> bool:
    return isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal)


def elbo(terms: BoundTerms, beta: Weight = 1.0) -> Tensor:
    """E_q[log p(x|z)] - beta KL(q || p), (B,); in expectation <= log p(x) if beta >= 1."""
    return (terms.log_px - beta * total_kl(terms)).mean(0)


def total_kl(terms: BoundTerms) -> Tensor:
    """The KL of all layers, (S, B)."""
    return terms.kl.squeeze(0) if len(terms.kl) == 1 else terms.kl.sum(0)


def importance_weighted_bound(terms: BoundTerms, beta: Weight = 1.0) -> Tensor:
    """log (1/S) sum_s p(x, z_s) / q(z_s|x), (B,). Burda et al. 2016, arXiv:1509.00519.

    beta tempers the ratio q/p; at 1 the bound rises with S to log p(x).
    """
    if terms.log_ratio is None:
        raise ValueError("importance weights need log q(z|x) - log p(z): bound_terms(..., log_ratio=True)")
    log_weights = terms.log_px - beta * terms.log_ratio
    return log_weights.logsumexp(0) - math.log(len(log_weights))

"""Bounds on log p(x), written once for every model, and a constraint on the distortion instead of a weighted KL.

S posterior samples, B images, L stochastic layers; every term is in nats per image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from vae_lab.core import Latent, Trace, TrainingSpec
from vae_lab.distributions.gaussians import as_diagonal_normal
from vae_lab.utils.distributed import all_reduce_mean

MAX_LOG_MULTIPLIER = 10.0  # of a constraint: the log multiplier is clamped to plus or minus this

KLEstimate = Literal["closed_form", "monte_carlo"]
Weight = float | Tensor  # a float; a tensor () where a step is compiled or replayed as a CUDA graph


class BoundTerms(NamedTuple):
    """The terms that a bound is computed from."""

    log_px: Tensor  # log p(x|z), (S, B)
    log_ratio: Tensor | None  # log q(z|x) - log p(z), (S, B); None where the bound does not need it
    kl: Tensor  # KL(q || p) of each layer, (L, S, B)
    latents: tuple[Tensor, ...] = ()  # the z of each layer, for a bound that rescales their gradients


Bound = Callable[[BoundTerms, Weight], Tensor]  # the weight is beta; returns (B,), larger is better


def bound_terms(
    trace: Trace, x: Tensor, kl: KLEstimate = "closed_form", log_ratio: bool = True, path_gradient: bool = False
) -> BoundTerms:
    """Compute the terms of a bound for the images x (B, C, H, W) under the trace.

    kl: `closed_form` where torch has one (else the Monte-Carlo estimate), or `monte_carlo`:
    log q(z|x) - log p(z) at the sampled z. log_ratio: whether the bound needs it. path_gradient: evaluate q at detached
    parameters, so that the encoder's gradient flows through z alone (Roeder et al. 2017, arXiv:1703.09194).
    """
    log_px = trace.likelihood.log_prob(x)
    if path_gradient:
        trace = trace._replace(
            latents=tuple(latent._replace(posterior=detach_posterior(latent)) for latent in trace.latents)
        )
    ratios = [latent.log_ratio if log_ratio or kl == "monte_carlo" else None for latent in trace.latents]
    estimate = closed_form_kl if kl == "closed_form" else lambda _, ratio: ratio
    kls = [estimate(*each).expand_as(log_px) for each in zip(trace.latents, ratios, strict=True)]
    ratio = functools.reduce(torch.add, [each for each in ratios if each is not None]) if log_ratio else None
    zs = tuple(latent.z for latent in trace.latents) if path_gradient else ()
    return BoundTerms(log_px, ratio, kls[0].unsqueeze(0) if len(kls) == 1 else torch.stack(kls), zs)


def detach_posterior(latent: Latent) -> Distribution:
    """q(z|x) with detached parameters. ValueError: neither a diagonal nor a full-covariance Gaussian."""
    posterior = latent.posterior
    if (base := as_diagonal_normal(posterior)) is not None:
        constant = Normal(base.loc.detach(), base.scale.detach(), validate_args=False)
        return Independent(constant, len(posterior.event_shape), validate_args=False)
    if isinstance(posterior, MultivariateNormal):
        loc, scale = posterior.loc.detach(), posterior._unbroadcasted_scale_tril.detach()
        return MultivariateNormal(loc, scale_tril=scale, validate_args=False)
    raise ValueError(
        "objective/bound=dreg needs a Gaussian posterior, whose parameters it detaches: choose "
        "model/posterior=diagonal_gaussian, or full_covariance where latents are vectors "
        f"(found {type(posterior).__name__}), or objective/bound=importance_weighted"
    )


def closed_form_kl(latent: Latent, log_ratio: Tensor | None = None) -> Tensor:
    """KL(q || p), (B,) or (S, B); its estimate `log_ratio`, by default the latent's, where torch has no closed form."""
    per_dimension = kl_per_dimension(latent)
    if per_dimension is not None:
        return per_dimension.sum(tuple(range(-len(latent.posterior.event_shape), 0)))
    try:
        return kl_divergence(latent.posterior, latent.prior)
    except NotImplementedError:
        return latent.log_ratio if log_ratio is None else log_ratio


def kl_per_dimension(latent: Latent) -> Tensor | None:
    """KL of each latent dimension, (B, *event) or (S, B, *event); None where q and p do not factorise."""
    posterior, prior = as_diagonal_normal(latent.posterior), as_diagonal_normal(latent.prior)
    return None if posterior is None or prior is None else kl_divergence(posterior, prior)


def elbo(terms: BoundTerms, beta: Weight = 1.0) -> Tensor:
    """E_q[log p(x|z)] - beta KL(q || p), (B,); in expectation <= log p(x) if beta >= 1."""
    return (terms.log_px - beta * total_kl(terms)).mean(0)


def total_kl(terms: BoundTerms) -> Tensor:
    """KL summed over layers, (S, B)."""
    return terms.kl.squeeze(0) if len(terms.kl) == 1 else terms.kl.sum(0)


def importance_weighted_bound(terms: BoundTerms, beta: Weight = 1.0) -> Tensor:
    """log (1/S) sum_s p(x, z_s) / q(z_s|x), (B,). Burda et al. 2016, arXiv:1509.00519.

    beta tempers the ratio q/p; at 1 the bound rises with S to log p(x).
    """
    if terms.log_ratio is None:
        raise ValueError("importance weights need log q(z|x) - log p(z): bound_terms(..., log_ratio=True)")
    log_weights = terms.log_px - beta * terms.log_ratio
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def doubly_reparameterized_bound(terms: BoundTerms, beta: Weight = 1.0) -> Tensor:
    """Importance-weighted bound, (B,), with an encoder gradient whose noise does not grow with S.

    With normalised weights w~, the model's gradient is sum_s w~_s grad log w_s, the encoder's (through z alone)
    sum_s ((1 - beta) w~_s + beta w~_s^2) grad log w_s; w~_s^2 at beta = 1, as in Tucker et al. 2019, arXiv:1810.04152,
    eq. 8. Needs terms with `path_gradient=True`. ValueError: several layers of latents, whose gradients flow through
    one another.
    """
    if terms.log_ratio is None or not terms.latents:
        raise ValueError("doubly reparameterised gradients need bound_terms(..., log_ratio=True, path_gradient=True)")
    if len(terms.latents) > 1:
        raise ValueError(
            f"objective/bound=dreg supports one layer of latents, and this model has {len(terms.latents)}: "
            "choose objective/bound=importance_weighted"
        )
    log_weights = terms.log_px - beta * terms.log_ratio
    normalized = log_weights.detach().softmax(0)  # (S, B)
    [z] = terms.latents
    if z.requires_grad:
        z.register_hook(functools.partial(_scale_gradient, 1 - beta + beta * normalized))
    weighted = (normalized * log_weights).sum(0)
    return importance_weighted_bound(terms, beta).detach() + (weighted - weighted.detach())


def _scale_gradient(factors: Tensor, gradient: Tensor) -> Tensor:
    """factors: (S, B). gradient: of z, (S, B, *event)."""
    return gradient * factors.reshape(*factors.shape, *(1 for _ in gradient.shape[2:]))


def capacity_bound(terms: BoundTerms, beta: Weight, capacity: Weight) -> Tensor:
    """E_q[log p(x|z)] - beta |KL - capacity|, (B,), with the batch mean of the KL. arXiv:1804.03599, eq. 8."""
    kl = total_kl(terms)
    return terms.log_px.mean(0) - beta * (kl.mean() - capacity).abs()


class DistortionConstraint(nn.Module):
    """The smallest KL at a distortion of at most `tolerance` per pixel and channel: GECO.

    The multiplier of the distortion rises while the constraint is violated and falls while it holds.
    Rezende & Viola 2018, arXiv:1810.00597, algorithm 1. tolerance: nats per pixel and channel, independent of the image
    size (may be negative for a density). rate: step size of the log multiplier. decay: of the moving average of the
    constraint. Under gradient accumulation the multiplier is updated at each batch.
    """

    log_multiplier: Tensor
    average: Tensor
    num_updates: Tensor

    def __init__(self, spec: TrainingSpec, tolerance: float, rate: float = 0.01, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1 or rate <= 0:
            raise ValueError(
                f"objective.constraint: decay lies in [0, 1) and rate is above 0; found decay={decay}, rate={rate}"
            )
        self.limit, self.rate, self.decay = tolerance * spec.image.num_dims, rate, decay
        self.num_dims = spec.image.num_dims
        for name in ("log_multiplier", "average", "num_updates"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, terms: BoundTerms, beta: Weight) -> Tensor:
        """-(beta KL + multiplier (distortion - limit)), (B,). In training mode, the multiplier is updated after use."""
        excess = -terms.log_px.mean(0) - self.limit
        loss = beta * total_kl(terms).mean(0) + self.log_multiplier.exp() * excess
        if self.training:
            self._update_multiplier(all_reduce_mean(excess.detach().mean() / self.num_dims))
        return -loss

    @property
    def multiplier(self) -> float:
        """The current weight of the distortion."""
        return float(self.log_multiplier.exp())

    @torch.no_grad()
    def _update_multiplier(self, excess: Tensor) -> None:
        first = self.num_updates == 0
        average = torch.where(first, excess, torch.lerp(excess, self.average, self.decay))
        self.log_multiplier.copy_(
            (self.log_multiplier + self.rate * average).clamp(-MAX_LOG_MULTIPLIER, MAX_LOG_MULTIPLIER)
        )
        self.average.copy_(average)
        self.num_updates.add_(1)

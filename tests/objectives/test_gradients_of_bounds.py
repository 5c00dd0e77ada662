"""Gradients of the bounds: doubly reparameterised, by the path alone, at a capacity, under a constraint."""

import math
from typing import NamedTuple

import pytest
import torch
from helpers.latents import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import ExpTransform, Independent, MultivariateNormal, Normal, TransformedDistribution
from torch.testing import assert_close

from vae_lab.core import Latent, Trace
from vae_lab.objectives import (
    Constant,
    DistortionConstraint,
    Objective,
    doubly_reparameterized_bound,
    elbo,
    importance_weighted_bound,
)
from vae_lab.objectives.bounds import MAX_LOG_MULTIPLIER, BoundTerms, bound_terms, capacity_bound

X, SCALE = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64), 0.6
DECODER = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -0.9]], dtype=torch.float64)


class Gradients(NamedTuple):
    """One row for each independent draw of the noise."""

    bound: Tensor  # its value, (R,)
    encoder: Tensor  # with respect to the posterior's parameters, (R, P)
    decoder: Tensor  # and to the decoder's matrix, (R, 6)


def independent(params):
    """params (R, 5): two means, two log scales; the last is not used."""
    return Independent(Normal(params[:, :2], params[:, 2:4].exp()), 1)


def full_covariance(params):
    """params (R, 5): two means, a log diagonal and what is below it."""
    below = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=params.dtype) * params[:, 4, None, None]
    return MultivariateNormal(params[:, :2], scale_tril=params[:, 2:4].exp().diag_embed() + below)


def exact_posterior():
    """p(z|x) of z ~ N(0, I), x|z ~ N(W z, s^2 I), as parameters (5,) of a full-covariance posterior."""
    covariance = torch.linalg.inv(torch.eye(2) + DECODER.T @ DECODER / SCALE**2)
    tril = torch.linalg.cholesky(covariance)
    return torch.cat((covariance @ DECODER.T @ X / SCALE**2, tril.diagonal().log(), tril[1, :1]))


def gradients(bound, family, params, num_samples, draws, beta=1.0, seed=0):
    """Every draw is an image with weights of its own, so one backward pass tells the gradient of each."""
    torch.manual_seed(seed)
    of_encoder = params.expand(draws, -1).clone().requires_grad_()
    of_decoder = DECODER.expand(draws, -1, -1).clone().requires_grad_()
    posterior = family(of_encoder)
    z = posterior.rsample((num_samples,))
    likelihood = Independent(Normal((of_decoder @ z.unsqueeze(-1)).squeeze(-1), SCALE), 1)
    prior = Independent(Normal(torch.zeros(2, dtype=z.dtype), 1.0), 1)
    trace, x = Trace(likelihood, (Latent(z, posterior, prior),)), X.expand(draws, -1)
    values = bound(Objective(bound, Constant(), num_samples=num_samples).terms(trace, x), beta)
    values.sum().backward()
    return Gradients(values.detach(), of_encoder.grad, of_decoder.grad.flatten(1))


PARAMS = torch.tensor([0.2, 0.5, -0.7, -0.2, 0.3], dtype=torch.float64)


def assert_same_mean(a, b):
    """Means of independent draws (R, P) that differ by no more than 4.5 standard errors."""
    error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= 4.5 * error).all(), (a.mean(0) - b.mean(0)) / error


@pytest.mark.parametrize(("family", "beta"), [(independent, 1.0), (independent, 0.4), (full_covariance, 2.0)])
def test_dregs_gradient_has_the_mean_of_the_plain_one_and_less_noise(family, beta):
    plain = gradients(importance_weighted_bound, family, PARAMS, 6, 60_000, beta)
    dreg = gradients(doubly_reparameterized_bound, family, PARAMS, 6, 60_000, beta, seed=1)
    assert_same_mean(plain.encoder, dreg.encoder)
    used = 4 if family is independent else 5
    assert dreg.encoder.var(0).sum() < 0.8 * plain.encoder.var(0).sum()
    assert (dreg.encoder.mean(0).abs() > 10 * dreg.encoder.std(0) / math.sqrt(60_000))[:used].any()


@pytest.mark.parametrize("family", [independent, full_covariance])
def test_dregs_value_and_its_gradient_for_the_decoder_are_the_plain_ones(family):
    plain = gradients(importance_weighted_bound, family, PARAMS, 5, 100)
    dreg = gradients(doubly_reparameterized_bound, family, PARAMS, 5, 100)
    assert torch.equal(dreg.bound, plain.bound)
    assert_close(dreg.decoder, plain.decoder)


def test_at_the_exact_posterior_only_the_path_gradient_is_still():
    params = exact_posterior()
    evidence = MultivariateNormal(torch.zeros(3, dtype=X.dtype), DECODER @ DECODER.T + SCALE**2 * torch.eye(3))
    dreg = gradients(doubly_reparameterized_bound, full_covariance, params, 4, 50)
    assert_close(dreg.bound, evidence.log_prob(X).expand(50))
    assert_close(dreg.encoder, torch.zeros(50, 5, dtype=X.dtype))
    plain = gradients(importance_weighted_bound, full_covariance, params, 4, 50)
    assert plain.encoder.std(0).min() > 0.1


def path_terms(posterior, num_samples=1):
    z = posterior.rsample((num_samples,))
    prior = Independent(Normal(torch.zeros(2, dtype=z.dtype), 1.0), 1)
    trace = Trace(Independent(Normal(z @ DECODER.T, SCALE), 1), (Latent(z, posterior, prior),))
    return trace, bound_terms(trace, X.expand(z.shape[1], -1), path_gradient=True)


@pytest.mark.parametrize("family", [independent, full_covariance])
def test_of_one_sample_dregs_gradient_is_that_of_the_path(family):
    """d/dz log p(x, z) / q(z|x), the density of q held constant, times dz/dparams. Roeder et al. 2017."""
    torch.manual_seed(0)
    params = PARAMS.expand(7, -1).clone().requires_grad_()
    posterior = family(params)
    trace, terms = path_terms(posterior)
    doubly_reparameterized_bound(terms).sum().backward()
    z = trace.latents[0].z
    free, still = z.detach().requires_grad_(), family(params.detach())
    likelihood, prior = Normal(free @ DECODER.T, SCALE), Normal(0.0, 1.0)
    log_weight = likelihood.log_prob(X).sum(-1) + prior.log_prob(free).sum(-1) - still.log_prob(free)
    (of_z,) = torch.autograd.grad(log_weight.sum(), free)
    torch.manual_seed(0)
    (expected,) = torch.autograd.grad(family(params).rsample((1,)), params, of_z)
    assert_close(params.grad, expected)


def test_a_posterior_whose_parameters_are_not_known_is_refused():
    flow = TransformedDistribution(independent(PARAMS.expand(3, -1)), [ExpTransform()])
    with pytest.raises(ValueError, match="model/posterior=diagonal_gaussian, or full_covariance"):
        path_terms(flow)


def test_evaluated_without_gradients_dreg_is_the_importance_bound():
    with torch.no_grad():
        _, terms = path_terms(independent(PARAMS.expand(5, -1)), num_samples=4)
        assert torch.equal(doubly_reparameterized_bound(terms), importance_weighted_bound(terms))


# Capacity


@given(st.floats(0, 30), st.floats(0.5, 100), st.integers(1, 3), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_a_capacity_draws_the_kl_towards_it_from_both_sides(capacity, beta, num_samples, num_images):
    torch.manual_seed(0)
    for below in (True, False):
        kl = torch.rand(2, num_samples, num_images) + (-1 if below else 1) * (capacity + 3) / 2 + capacity / 2
        kl.requires_grad_()
        terms = BoundTerms(torch.zeros(num_samples, num_images), None, kl)
        bound = capacity_bound(terms, beta, capacity)
        distance = (kl.sum(0).mean() - capacity).abs()
        assert_close(bound, -(beta * distance).expand(num_images))
        bound.mean().backward()
        sign = 1 if below else -1
        assert_close(kl.grad, torch.full_like(kl, sign * beta / (num_samples * num_images)))


def test_a_capacity_is_held_by_the_batch_not_by_each_image():
    """Images that differ about the capacity are not drawn to it, where their mean is at it."""
    kl = torch.tensor([[[1.0, 9.0]]], requires_grad=True)
    bound = capacity_bound(BoundTerms(torch.tensor([[-3.0, -4.0]]), None, kl), 10.0, 5.0)
    assert_close(bound, torch.tensor([-3.0, -4.0]))
    bound.sum().backward()
    assert (kl.grad == 0).all()


# The constraint on the distortion


def constraint(tolerance=0.5, **options):
    return DistortionConstraint(spec(), tolerance, **options)


def scored(distortion, kl=0.0, num_images=3):
    """Terms of images whose distortion is this many nats."""
    log_px = -torch.as_tensor(distortion).expand(2, num_images)
    return BoundTerms(log_px, None, torch.as_tensor(kl).expand(1, 2, num_images))


def test_the_multiplier_moves_by_the_average_excess_after_it_was_used():
    part, average, log_multiplier = constraint(rate=0.1, decay=0.8), None, 0.0
    for distortion in (3.0, 7.0, 1.0):
        excess = distortion - 2.0
        bound = part(scored(distortion, kl=5.0), 2.0)
        assert_close(bound, torch.full((3,), -(2.0 * 5.0 + math.exp(log_multiplier) * excess)))
        average = excess / 4 if average is None else 0.8 * average + 0.2 * excess / 4
        log_multiplier += 0.1 * average
        assert part.log_multiplier.item() == pytest.approx(log_multiplier, rel=1e-5)


def test_in_evaluation_the_multiplier_stays_and_in_training_within_its_limits():
    part = constraint(rate=5.0, decay=0.0)
    part.eval()(scored(100.0), 1.0)
    assert part.log_multiplier.item() == 0
    for distortion, end in ((100.0, MAX_LOG_MULTIPLIER), (-100.0, -MAX_LOG_MULTIPLIER)):
        for _ in range(3):
            part.train()(scored(distortion), 1.0)
        assert part.log_multiplier.item() == end


def test_the_constraint_is_reached_at_the_smallest_rate():
    """A Gaussian source: distortion exp(-2 R) v at rate R. At its limit d, R = ln(v / d) / 2, its price 1 / (2 d)."""
    variance, limit = 8.0, 2.0
    rate = torch.zeros((), requires_grad=True)
    part = constraint(tolerance=limit / 4, rate=0.05, decay=0.5)
    optimizer = torch.optim.SGD([rate], 0.1)
    for _ in range(500):
        optimizer.zero_grad()
        (-part(scored(variance * torch.exp(-2 * rate), kl=rate), 1.0)).mean().backward()
        optimizer.step()
    assert rate.item() == pytest.approx(0.5 * math.log(variance / limit), abs=1e-3)
    assert part.log_multiplier.exp().item() == pytest.approx(1 / (2 * limit), abs=1e-3)


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"decay": 1.0}, {"decay": -0.1}])
def test_constraints_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=r"decay lies in \[0, 1\) and rate is above 0"):
        constraint(**options)


def test_an_objective_with_a_constraint_minimises_what_the_constraint_says():
    objective = Objective(elbo, Constant(), spec(), constraint=lambda spec: DistortionConstraint(spec, 0.5))
    other, terms = constraint(), scored(3.0, kl=5.0)
    for _ in range(2):
        assert_close(objective._bound(None, terms, objective.weights_at(0, None)), other(terms, 1.0))
    assert torch.equal(objective.constraint.log_multiplier, other.log_multiplier) and other.log_multiplier > 0

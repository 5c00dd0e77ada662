"""The bounds against exact answers: conjugate Gaussians, a linear model, torch.distributions."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers.latents import gaussian, spec, standard_normal
from helpers.steps import composed, model_of
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.testing import assert_close

from vae_lab.core import Latent, RegularizerInputs, Trace, TrainingSpec
from vae_lab.distributions.gaussians import mixture
from vae_lab.objectives import (
    Constant,
    DistortionConstraint,
    LinearWarmup,
    Objective,
    doubly_reparameterized_bound,
    elbo,
    importance_weighted_bound,
)
from vae_lab.objectives.bounds import BoundTerms, bound_terms, kl_per_dimension
from vae_lab.objectives.objective import Weights, apply_free_bits
from vae_lab.objectives.regularizers import Spectral
from vae_lab.training.build import build_node


def conjugate(num_samples, scale=0.5, posterior_scale=None, num_images=5):
    """z ~ N(0, 1), x|z ~ N(z, scale^2): the posterior and the evidence are known."""
    torch.manual_seed(1)
    x = torch.randn(num_images, 1, dtype=torch.float64)
    prior, evidence = gaussian(0 * x, 1.0), gaussian(0 * x, math.hypot(1, scale))
    exact = scale / math.hypot(1, scale)
    posterior = gaussian(x / (1 + scale**2), posterior_scale or exact)
    z = posterior.rsample((num_samples,))
    trace = Trace(Independent(Normal(z, scale), 1), (Latent(z, posterior, prior),))
    return trace, x, evidence.log_prob(x)


def test_the_exact_posterior_makes_the_importance_bound_tight():
    trace, x, evidence = conjugate(7)
    assert_close(importance_weighted_bound(bound_terms(trace, x)), evidence)
    assert_close(elbo(bound_terms(trace, x, kl="monte_carlo")), evidence)


def test_the_elbo_is_the_evidence_less_the_kl_to_the_exact_posterior():
    trace, x, evidence = conjugate(200_000, posterior_scale=0.8)
    exact = gaussian(x / 1.25, 0.5 / math.hypot(1, 0.5))
    gap = torch.distributions.kl_divergence(trace.latents[0].posterior, exact)
    assert_close(elbo(bound_terms(trace, x)), evidence - gap, atol=1e-2, rtol=0)


def test_the_importance_bound_rises_with_the_number_of_samples_to_the_evidence():
    values = []
    for num_samples in (1, 4, 16, 64, 1024):
        trace, x, evidence = conjugate(num_samples * 200, posterior_scale=0.9, num_images=3)
        # 200 independent bounds of num_samples each
        log_px, ratio = (t.unflatten(0, (200, -1)).transpose(0, 1).flatten(1) for t in bound_terms(trace, x)[:2])
        values.append(importance_weighted_bound(BoundTerms(log_px, ratio, ratio.unsqueeze(0))).mean())
    assert all(a < b + 2e-3 for a, b in pairwise(values))
    assert values[0] < evidence.mean() - 0.05
    assert values[-1].item() == pytest.approx(evidence.mean().item(), abs=1e-2)


def test_a_linear_vae_reaches_probabilistic_pca():
    """x|z ~ N(W z + b, s^2 I): with the exact posterior the ELBO is PPCA's log-likelihood."""
    torch.manual_seed(0)
    w, b, s = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64), 0.3
    x = torch.randn(6, 4, dtype=torch.float64)
    m = w.T @ w + s**2 * torch.eye(2)
    mean = (x - b) @ w @ torch.linalg.inv(m)
    posterior = MultivariateNormal(mean, covariance_matrix=s**2 * torch.linalg.inv(m))
    prior = Independent(Normal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)), 1)
    z = posterior.rsample((3,))
    likelihood = Independent(Normal(z @ w.T + b, s), 1)
    trace = Trace(likelihood, (Latent(z, posterior, prior),))
    evidence = MultivariateNormal(b, covariance_matrix=w @ w.T + s**2 * torch.eye(4)).log_prob(x)
    assert_close(importance_weighted_bound(bound_terms(trace, x)), evidence)
    assert_close(elbo(bound_terms(trace, x, kl="monte_carlo")), evidence)


def minimised(objective, trace, terms, weights):
    seen = RegularizerInputs(trace, torch.zeros(6, 3), lambda z: trace.likelihood, ())
    return objective(seen, terms, weights)[0]


def gaussian_trace(num_samples=1, num_images=6, dims=3):
    posterior = Independent(Normal(torch.randn(num_images, dims), torch.rand(num_images, dims) + 0.1), 1)
    z = posterior.rsample((num_samples,))
    likelihood = Independent(Normal(z, 1.0), 1)
    return Trace(likelihood, (Latent(z, posterior, standard_normal(dims)),))


def test_the_closed_form_kl_is_the_textbook_one_and_its_dimensions_add_up():
    trace = gaussian_trace(num_samples=2)
    normal = trace.latents[0].posterior.base_dist
    textbook = 0.5 * (normal.mean**2 + normal.variance - 1 - normal.variance.log())
    assert_close(kl_per_dimension(trace.latents[0]), textbook)
    kl = bound_terms(trace, torch.zeros(6, 3)).kl
    assert kl.shape == (1, 2, 6)
    assert_close(kl[0, 0], textbook.sum(-1))


def test_the_importance_bound_of_one_sample_is_the_monte_carlo_elbo():
    trace = gaussian_trace()
    terms = bound_terms(trace, torch.zeros(6, 3), kl="monte_carlo")
    assert_close(importance_weighted_bound(terms), elbo(terms))


def test_only_the_objective_negates_and_beta_weighs_the_kl():
    trace, x = gaussian_trace(), torch.zeros(6, 3)
    objective = Objective(elbo, LinearWarmup(steps=10), beta=4.0)
    terms = objective.terms(trace, x)
    for step, beta in ((5, 2.0), (50, 4.0)):
        loss = minimised(objective, trace, terms, objective.weights_at(step, 100))
        assert_close(loss, -(terms.log_px[0] - beta * terms.kl[0, 0]))


def test_free_bits_floor_the_batch_mean_of_each_dimension():
    trace = gaussian_trace()
    terms = bound_terms(trace, torch.zeros(6, 3))
    per_dimension = kl_per_dimension(trace.latents[0]).mean(0)
    floor = float(per_dimension.median())
    expected = per_dimension.clamp(min=floor).sum()
    assert_close(apply_free_bits(trace, terms, floor), expected.expand(1, 1, 6))
    objective = Objective(elbo, Constant(), free_bits=floor)
    assert_close(minimised(objective, trace, terms, Weights()), -(terms.log_px[0] - expected))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("whole", ["posterior", "prior"])
def test_free_bits_floor_a_kl_that_does_not_factorise_at_so_many_per_dimension(whole, dims):
    """The estimated KL to a mixture and the closed form of a full covariance: above the floor it is left as it is."""
    torch.manual_seed(0)
    latent = gaussian_trace(num_samples=2, dims=dims).latents[0]
    if whole == "prior":
        latent = latent._replace(prior=mixture(torch.zeros(4), gaussian(torch.randn(4, dims), 1.0)))
    else:
        factor = torch.diag_embed(latent.posterior.stddev)
        latent = latent._replace(posterior=MultivariateNormal(latent.posterior.mean, scale_tril=factor))
    trace = Trace(Independent(Normal(latent.z, 1.0), 1), (latent,))
    terms = bound_terms(trace, torch.zeros(6, dims))
    mean = terms.kl.mean()
    for share, expected in ((0.9, mean), (1.1, 1.1 * mean)):
        floored = apply_free_bits(trace, terms, share * float(mean) / dims)
        assert_close(floored, expected.expand(1, 2, 6))


def test_free_bits_count_codes_not_their_features():
    """Two codes of five categories, of a KL below the floor: 2 x 0.25 nats, not 10 x 0.25."""
    codes = ("model/posterior=relaxed_categorical", "model/prior=uniform_codes", "model.posterior.num_categories=5")
    overrides = (*codes, "model.latent_dim=2", "objective.free_bits=0.25", "model/likelihood=bernoulli")
    model = model_of(*overrides)
    node = composed(*overrides).objective
    objective = build_node(node, spec=TrainingSpec(model.image, model.latents, 100))
    x = torch.rand(6, 1, 8, 8)
    trace = model(x, 1)
    terms = objective.terms(trace, x)
    assert 0 < float(terms.kl.detach().mean()) < 0.5
    loss, _ = objective(model.regularizer_inputs(trace, x, None), terms, Weights())
    assert_close(loss, 0.5 - terms.log_px[0])


def test_free_bits_leave_a_dimension_below_the_floor_without_a_gradient():
    mean = torch.tensor([[0.01, 2.0]], requires_grad=True)
    posterior = Independent(Normal(mean, torch.ones(1, 2)), 1)
    z = posterior.rsample((1,))
    trace = Trace(Independent(Normal(torch.zeros(1, 1, 2), 1.0), 1), (Latent(z, posterior, standard_normal(2)),))
    terms = bound_terms(trace, torch.zeros(1, 2))
    apply_free_bits(trace, terms, 0.5).sum().backward()
    assert_close(mean.grad, torch.tensor([[0.0, 2.0]]))


def test_the_gradients_of_several_layers_are_not_reparameterised_twice():
    terms = BoundTerms(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2, 3), (torch.zeros(2, 3, 1),) * 2)
    with pytest.raises(ValueError, match="one layer of latents, and this model has 2"):
        doubly_reparameterized_bound(terms)


DREG = {"bound": doubly_reparameterized_bound, "num_samples": 2}
IWAE = {"bound": importance_weighted_bound, "num_samples": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": importance_weighted_bound}, "num_samples must be at least 2"),
        ({**IWAE, "free_bits": 0.1}, "choose objective/bound=elbo"),
        ({"free_bits": 0.1, "kl": "monte_carlo"}, "closed form"),
        ({"beta": -1.0}, "objective.beta"),
        ({"free_bits": -1.0}, "objective.free_bits"),
        ({"num_samples": 0}, "objective.num_samples"),
        ({"bound": doubly_reparameterized_bound}, "num_samples must be at least 2"),
        (
            {**DREG, "spec": spec(), "regularizers": {"spectral": partial(Spectral, weight=0.1)}},
            "choose objective/bound=importance_weighted",
        ),
        ({"regularizers": {"spectral": Spectral}}, "need a TrainingSpec"),
        ({"capacity": -1.0}, "objective.capacity"),
        ({**IWAE, "capacity": 5.0}, "choose objective/bound=elbo"),
        ({"capacity": 5.0, "constraint": DistortionConstraint}, "exclude each other"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(**{"bound": elbo, "beta_schedule": Constant(), **options})

"""Annealed importance sampling on a linear Gaussian model, whose log p(x) is known."""

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.testing import assert_close

from vae_lab.metrics.annealed import Path, anneal, hmc, schedule

WEIGHT = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
SCALE = 0.3


def prior(z):
    return Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)


def joint_of(x):
    return lambda z: prior(z) + Independent(Normal(z @ WEIGHT.T, SCALE), 1).log_prob(x)


def simulated(count: int):
    """z, x and log p(x) of probabilistic PCA."""
    torch.manual_seed(1)
    z = torch.randn(count, 3)
    x = z @ WEIGHT.T + SCALE * torch.randn(count, 6)
    covariance = WEIGHT @ WEIGHT.T + SCALE**2 * torch.eye(6)
    return z, x, MultivariateNormal(torch.zeros(6), covariance).log_prob(x)


def test_forward_and_backward_chains_bracket_log_px_and_come_close():
    z, x, exact = simulated(16)
    path = Path(prior, joint_of(x))
    lower = anneal(path, torch.randn(12, 16, 3), 200)
    upper = anneal(path, z.expand(12, 16, 3), 200, backwards=True)
    assert 0.4 < lower.acceptance < 0.9
    assert lower.log_px.mean() - 0.05 < exact.mean() < upper.upper_bound.mean() + 0.05
    assert_close(lower.log_px.mean(), exact.mean(), atol=0.1, rtol=0)
    assert_close(upper.upper_bound.mean(), exact.mean(), atol=0.1, rtol=0)


def test_it_comes_closer_than_importance_sampling_of_the_same_compute():
    _, x, exact = simulated(16)
    wrong = Independent(Normal(torch.full((16, 3), 2.0), 0.7), 1)
    path, num_steps, leapfrog = Path(wrong.log_prob, joint_of(x)), 100, 5
    annealed = anneal(path, wrong.sample((8,)), num_steps, leapfrog)
    z = wrong.sample((8 * num_steps * (leapfrog + 2),))
    weights = joint_of(x)(z) - wrong.log_prob(z)
    plain = weights.logsumexp(0) - torch.tensor(float(len(z))).log()
    assert (annealed.log_px - exact).abs().mean() < (plain - exact).abs().mean()


def test_a_start_at_the_exact_posterior_is_exact():
    _, x, exact = simulated(5)
    precision = torch.eye(3) + WEIGHT.T @ WEIGHT / SCALE**2
    mean = torch.linalg.solve(precision, (x @ WEIGHT / SCALE**2).T).T
    posterior = MultivariateNormal(mean, precision_matrix=precision)
    found = anneal(Path(posterior.log_prob, joint_of(x)), posterior.sample((2,)), 7)
    assert_close(found.log_px, exact, atol=1e-4, rtol=0)


def test_hmc_leaves_its_density_unchanged():
    torch.manual_seed(0)
    target = Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0]))
    z = target.sample((4000, 1))
    for _ in range(3):
        z, _ = hmc(lambda each: target.log_prob(each).sum(-1), z, torch.tensor([0.4]), 6)
    assert_close(z.mean((0, 1)), target.loc, atol=0.1, rtol=0)
    assert_close(z.std((0, 1)), target.scale, atol=0.1, rtol=0)


def test_the_schedule_rises_from_0_to_1():
    values = schedule(10)
    assert values[0] == 0 and values[-1] == 1 and values == sorted(values) and len(values) == 11
    with pytest.raises(ValueError, match="at least 1 step"):
        schedule(0)

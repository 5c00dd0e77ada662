"""Flows: log-determinants against autograd, inverses, integrals of densities, a sample's density without an inverse."""

import functools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.func import jacrev
from torch.testing import assert_close

from vae_lab.core import ImageSpec, Latent, LatentSpec
from vae_lab.distributions.base import rsample_and_log_prob
from vae_lab.distributions.flows import (
    AffineCoupling,
    Householder,
    InverseAutoregressive,
    Planar,
)
from vae_lab.distributions.reshaped import UnflattenedBatch
from vae_lab.likelihoods import Bernoulli
from vae_lab.models import VAE
from vae_lab.models.base import point_estimate
from vae_lab.networks import MLPDecoder, MLPEncoder
from vae_lab.networks.autoregressive import MADE
from vae_lab.objectives import elbo
from vae_lab.objectives.bounds import bound_terms, closed_form_kl
from vae_lab.posteriors import DiagonalGaussian, HouseholderFlow, InverseAutoregressiveFlow, PlanarFlow
from vae_lab.priors import FlowPrior, StandardNormal
from vae_lab.priors.temperature import with_temperature

IMAGE = ImageSpec(1, 4, 4, levels=2)
FAMILIES = {
    "iaf": functools.partial(InverseAutoregressiveFlow, num_flows=3, hidden=[16, 12], context_features=3),
    "planar": functools.partial(PlanarFlow, num_flows=3),
    "householder": functools.partial(HouseholderFlow, num_flows=3),
}
D = 5
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def flow_of(name, dims=D):
    """A flow of one vector, with parameters of ordinary size in double precision."""
    if name.startswith("iaf"):
        made = MADE(dims, 3, [16, 12], backwards=name.endswith("backwards"), shift=1.0).double()
        return InverseAutoregressive(made, torch.randn(3, dtype=torch.float64))
    if name == "planar":
        u, w, b = torch.randn(2 * dims + 1, dtype=torch.float64).split((dims, dims, 1))
        return Planar(2 * u, w, b)
    if name == "householder":
        return Householder(torch.randn(dims, dtype=torch.float64))
    kept, changed = (dims + 1) // 2, dims // 2
    if name.endswith("swapped"):
        kept, changed = changed, kept
    network = nn.Sequential(nn.Linear(kept, 16), nn.SiLU(), nn.Linear(16, 2 * changed)).double()
    return AffineCoupling(network, swapped=name.endswith("swapped"))


def forward(flow):
    return lambda x: flow.forward_and_log_det(x)[0]


def posterior_distribution(name, dims=D, batch=(4,), seed=1, scale=1.0):
    """A family, parameters as an encoder would give them, and q(z|x)."""
    torch.manual_seed(seed)
    family = FAMILIES[name](dims)
    params = (scale * torch.randn(batch[0], family.num_params, *batch[1:])).requires_grad_()
    return family, params, family(params)


def flow_prior(dims=D, hidden=(16,), num_flows=3, shape=None):
    """One that has learned something."""
    prior = FlowPrior(LatentSpec("vector", shape or (dims,), IMAGE), num_flows, hidden)
    for weight in prior.parameters():
        nn.init.normal_(weight, std=0.4)
    return prior


# --- maps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iaf", "iaf_backwards", "planar", "householder", "coupling", "coupling_swapped"])
@pytest.mark.parametrize("seed", range(3))
def test_the_log_determinant_is_autograds_and_the_inverse_undoes_the_map(name, seed):
    torch.manual_seed(seed)
    flow, x = flow_of(name), torch.randn(6, D, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    jacobian = jacrev(forward(flow))(x[0])
    assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1])
    back, again = flow.inverse_and_log_det(y)
    assert_close(back, x, rtol=1e-8, atol=1e-8)
    assert_close(again, log_det, rtol=1e-8, atol=1e-8)
    product = jacrev(lambda y: flow.inverse_and_log_det(y)[0])(y[0]) @ jacobian
    assert_close(product, torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("backwards", [False, True])
def test_made_is_autoregressive_and_uses_all_that_it_may(backwards):
    made, h = MADE(D, 3, [16, 12], backwards).double(), torch.randn(3, dtype=torch.float64)
    z = torch.randn(D, dtype=torch.float64)
    order = made.degrees.argsort()
    assert order.tolist() == (list(range(D))[::-1] if backwards else list(range(D)))
    before = torch.ones(D, D).tril(-1).bool()
    for jacobian in jacrev(made)(z, h):
        in_order = jacobian[order][:, order]
        assert (in_order[~before] == 0).all() and (in_order[before] != 0).all()
    for jacobian in jacrev(made, argnums=1)(z, h):
        assert (jacobian != 0).all()


def test_masked_weights_stay_zero_and_out_of_the_norm():
    made = MADE(D, 3, [16])
    optimizer = torch.optim.AdamW(made.parameters(), 0.1, weight_decay=0.1)
    for _ in range(5):
        mean, logit = made(torch.randn(8, D), torch.randn(8, 3))
        (mean.square() + logit.square()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer in (made.first, made.head):
        assert (~layer.mask).any() and (layer.weight[~layer.mask] == 0).all()
        assert_close(layer.masked_weight().norm(dim=1, keepdim=True), layer.parametrizations.weight.original0.abs())


def test_the_steps_of_flows_are_the_papers():
    """Inverse autoregressive, algorithm 1: z <- sigma z + (1 - sigma) m. Two equal reflections change nothing."""
    flow, x = flow_of("iaf"), torch.randn(7, D, dtype=torch.float64)
    m, s = flow.network(x, flow.context)
    sigma = torch.sigmoid(7 * torch.tanh(s / 7))
    assert_close(flow.forward_and_log_det(x), (sigma * x + (1 - sigma) * m, sigma.log().sum(-1)))
    orders = [made.degrees.tolist() for made in FAMILIES["iaf"](D).networks]
    assert orders == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4]]
    x, v = x.float(), torch.randn(D)
    for w in (v, 1e-3 * v, torch.zeros(D)):
        assert_close(forward(Planar(torch.zeros(D), w, torch.ones(1)))(x), x, rtol=0, atol=1e-4)
    assert_close(Householder(v).reflect(Householder(3 * v).reflect(x)), x)
    assert_close(Householder(torch.zeros(D)).reflect(x), x)


numbers = st.floats(-100, 100, width=32)


@given(st.lists(numbers, min_size=10, max_size=10))
@example([-100, 0, 0, 0.1, 0, 0, 0, 0, 0, 0])  # a short w, along which u points far back
@example([-100, 0, 0, 100, 0, 0, 0, 0.01, 0, 0])
@settings(deadline=None, max_examples=60)
def test_planar_flows_are_invertible_whatever_the_encoder_says(values):
    u, w, b, x = torch.tensor(values, dtype=torch.float64).split((3, 3, 1, 3))
    flow = Planar(u, w, b)
    y, log_det = flow.forward_and_log_det(x)
    back, again = flow.inverse_and_log_det(y)
    assert_close(back, x, rtol=1e-6, atol=1e-6)
    assert_close(again, log_det, rtol=1e-4, atol=1e-4)


@given(st.data(), st.sampled_from([*FAMILIES]))
@settings(deadline=None, max_examples=60)
def test_densities_and_gradients_are_finite_whatever_the_encoder_says(data, name):
    torch.manual_seed(0)
    family = FAMILIES[name](3)
    count = family.num_params
    values = data.draw(st.lists(st.floats(-1e3, 1e3, width=32), min_size=count, max_size=count))
    params = torch.tensor([values], requires_grad=True)
    posterior = family(params)
    z = posterior.rsample((2,))
    posterior.log_prob(z).sum().backward()
    assert z.isfinite().all() and posterior.log_prob(z).isfinite().all() and params.grad.isfinite().all()


# --- the density of a sample ------------------------------------------------------------------------------


def gradients(log_prob, *inputs):
    return torch.autograd.grad(log_prob.sum(), inputs, retain_graph=True, allow_unused=True)


@every_family
@pytest.mark.parametrize("batch", [(4,), (2, 3, 2), "unflattened"])
def test_the_density_of_a_sample_is_that_of_any_point(name, batch):
    """By pushing and by inverting: the same values, and the same gradients of the encoder's output and the weights."""
    family, params, posterior = posterior_distribution(name, batch=(6, 3, 2) if batch == "unflattened" else batch)
    if batch == "unflattened":
        posterior = UnflattenedBatch(posterior, 3)
    z, pushed = rsample_and_log_prob(posterior, (2,))
    inverted = posterior.log_prob(z)
    assert pushed.shape == inverted.shape == (2, *posterior.batch_shape)
    assert_close(pushed, inverted, rtol=1e-4, atol=1e-4)
    weights = [params, *family.parameters()]
    for one, other in zip(gradients(pushed, *weights), gradients(inverted, *weights), strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_the_bounds_of_a_model_invert_no_posterior_and_invert_the_prior_once(mode):
    model, x = model_of(FAMILIES["iaf"], functools.partial(FlowPrior, num_flows=2)), torch.rand(3, *IMAGE.shape)
    passes = []
    for network in (*model.posterior.networks, *model.prior.networks):
        network.register_forward_hook(lambda *_: passes.append(1))
    for log_ratio in (False, True):
        with mode():
            terms = bound_terms(model(x, 4), x, log_ratio=log_ratio)
        assert terms.kl.isfinite().all() and len(passes) == 3 + 2
        passes.clear()


# --- densities --------------------------------------------------------------------------------------------


def on_a_grid(log_prob, dims, limit=12.0, steps=401):
    """The integral, the mean and the second moments (D, D) of a density."""
    axis = torch.linspace(-limit, limit, steps)
    points = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    mass = log_prob(points).double().exp() * (2 * limit / (steps - 1)) ** dims
    points = points.double()
    return mass.sum(), mass @ points, (mass[:, None] * points).T @ points


@pytest.mark.parametrize(
    ("name", "dims"), [("iaf", 1), ("planar", 1), ("iaf", 2), ("planar", 2), ("householder", 2), ("prior", 2)]
)
def test_densities_integrate_to_one_and_have_the_moments_of_their_samples(name, dims):
    if name == "prior":
        density = flow_prior(dims)()
        z = density.sample((100_000,))
    else:
        family, params, _ = posterior_distribution(name, dims, batch=(1,), seed=3, scale=0.7)
        density = family(params.detach())
        z = density.sample((100_000,)).squeeze(1)
    integral, mean, second = on_a_grid(lambda points: density.log_prob(points).reshape(-1), dims)
    assert integral.item() == pytest.approx(1, abs=2e-3)
    spread = second.diagonal().sum().sqrt().item()
    assert_close(z.double().mean(0), mean, rtol=0, atol=2e-2 * spread)
    assert_close(z.double().T @ z.double() / len(z), second, rtol=0, atol=4e-2 * spread**2)


@pytest.mark.parametrize("prior_batch", [(), (4,)])
def test_a_householder_posterior_is_a_gaussian_of_full_covariance(prior_batch):
    """As torch has it: densities, moments and the KL to a diagonal Gaussian."""
    _, _, q = posterior_distribution("householder")
    axes = torch.eye(D).unsqueeze(1)
    for reflection in q.reflections:
        axes = reflection.reflect(axes)  # the image of each axis, (D, B, D)
    turned = axes.permute(1, 2, 0) * q.base.base_dist.scale.unsqueeze(1)
    reference = MultivariateNormal(q.mean, covariance_matrix=turned @ turned.mT)
    z = torch.randn(3, 4, D)
    assert_close(q.log_prob(z), reference.log_prob(z), rtol=1e-4, atol=1e-4)
    assert_close(q.variance, reference.variance, rtol=1e-4, atol=1e-5)
    assert (reference.covariance_matrix - torch.diag_embed(reference.variance)).abs().max() > 0.1
    density_at_mode = q.log_prob(q.mode)
    assert (q.log_prob(q.mode + 0.01 * torch.randn(50, 4, D)) < density_at_mode).all()
    assert_close(point_estimate(q), reference.mean)
    mean, scale = torch.randn(*prior_batch, D), torch.rand(*prior_batch, D) + 0.5
    expected = kl_divergence(reference, MultivariateNormal(mean, scale_tril=torch.diag_embed(scale)))
    assert_close(kl_divergence(q, Independent(Normal(mean, scale), 1)), expected, rtol=1e-4, atol=1e-4)
    samples, flow = q.rsample((2,)), flow_prior()()  # a KL to another family is left to samples
    assert_close(closed_form_kl(Latent(samples, q, flow)), q.log_prob(samples) - flow.log_prob(samples))


@every_family
def test_flows_over_a_map_treat_each_place_by_itself(name):
    family, params, posterior = posterior_distribution(name, batch=(2, 3, 2))
    assert posterior.batch_shape == (2,) and posterior.event_shape == (D, 3, 2)
    z = posterior.sample((4,))
    places = params.movedim(1, -1).reshape(-1, family.num_params)
    each = family(places).log_prob(z.movedim(-3, -1).reshape(4, -1, D)).reshape(4, 2, 6)
    assert_close(posterior.log_prob(z), each.sum(-1), rtol=1e-4, atol=1e-4)
    assert point_estimate(posterior).shape == (2, D, 3, 2)
    prior = StandardNormal(LatentSpec("vector", (D, 3, 2), IMAGE))()
    kl = closed_form_kl(Latent(z, posterior, prior))
    if name == "householder":
        closed = kl_divergence(family(places), Independent(Normal(torch.zeros(D), torch.ones(D)), 1))
        assert_close(kl, closed.reshape(2, 6).sum(1), rtol=1e-4, atol=1e-4)
    else:
        assert_close(kl, posterior.log_prob(z) - prior.log_prob(z))


def test_the_monte_carlo_kl_of_flows_that_change_nothing_averages_to_the_closed_form():
    params = torch.randn(4, 2 * D)
    gaussian, normal = DiagonalGaussian(D)(params), StandardNormal(LatentSpec("vector", (D,), IMAGE))()
    exact = kl_divergence(gaussian, normal)
    prior = FlowPrior(LatentSpec("vector", (D,), IMAGE), 2, [8])()  # as it starts
    planar = PlanarFlow(D, num_flows=2)(torch.cat((params, torch.zeros(4, 2 * (2 * D + 1))), 1))
    for q, p in ((gaussian, prior), (planar, normal), (planar, prior)):
        z = q.sample((5_000,))
        latent = Latent(z, q, p)
        assert_close(latent.log_ratio, gaussian.log_prob(z) - normal.log_prob(z), rtol=1e-4, atol=1e-4)
        assert_close(closed_form_kl(latent).mean(0), exact, rtol=0.05, atol=0.1)
    axes = torch.eye(D)[0].expand(4, D)
    still = HouseholderFlow(D, num_flows=2)(torch.cat((params, axes, axes), 1))
    assert_close(closed_form_kl(Latent(still.rsample(), still, normal)), exact)


def test_the_flow_prior_starts_as_a_standard_normal_and_can_be_tempered():
    prior = FlowPrior(LatentSpec("vector", (3, 2, 2), IMAGE))()
    z = torch.randn(6, 3, 2, 2)
    assert prior.batch_shape == () and prior.event_shape == (3, 2, 2)
    assert_close(prior.log_prob(z), Normal(0, 1).log_prob(z).sum((1, 2, 3)))
    cold = with_temperature(prior, 0.5)
    assert cold.sample((5_000,)).std().item() == pytest.approx(0.5, abs=0.01)
    assert_close(cold.log_prob(z), Normal(0, 0.5).log_prob(z).sum((1, 2, 3)))
    learned = flow_prior(shape=(3, 2, 2))()
    z = learned.sample((5,))
    x = z.flatten(1)
    for flow in reversed(learned.base_dist.flows):
        x, _ = flow.inverse_and_log_det(x)
    change = Normal(0, 0.5).log_prob(x).sum(1) - Normal(0, 1).log_prob(x).sum(1)
    assert_close(with_temperature(learned, 0.5).log_prob(z), learned.log_prob(z) + change, rtol=1e-4, atol=1e-4)


# --- as parts of a model ----------------------------------------------------------------------------------


def model_of(posterior, prior):
    sizes = {"hidden": [8]}
    encoder, decoder = functools.partial(MLPEncoder, **sizes), functools.partial(MLPDecoder, **sizes)
    return VAE(IMAGE, D, encoder, decoder, posterior, prior, Bernoulli)


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [*((family, StandardNormal) for family in FAMILIES.values()), (DiagonalGaussian, FlowPrior)],
)
def test_every_parameter_has_a_gradient_by_the_second_step(posterior, prior):
    model, x = model_of(posterior, prior), torch.rand(16, *IMAGE.shape).round()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (-elbo(bound_terms(model(x, 4), x)).mean()).backward()
        optimizer.step()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", [*FAMILIES, "prior"])
def test_autocast_does_not_round_densities(name):
    part = flow_prior() if name == "prior" else FAMILIES[name](D)
    params = () if name == "prior" else (torch.randn(4, part.num_params).bfloat16(),)
    normal = StandardNormal(LatentSpec("vector", (D,), IMAGE))()

    def looked_at():
        torch.manual_seed(0)
        density = part(*params)
        z, log_q = rsample_and_log_prob(density, (2,) if params else (2, 4))
        kl = closed_form_kl(Latent(z, density, normal, log_q))
        return z, log_q, density.log_prob(z), kl

    exact = looked_at()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = looked_at()
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InverseAutoregressiveFlow(D, num_flows=0), "model.posterior.num_flows is at least 1; found 0"),
        (lambda: PlanarFlow(D, num_flows=0), "choose model/posterior=diagonal_gaussian"),
        (lambda: HouseholderFlow(1), "model/posterior=householder needs vectors of at least 2 dimensions"),
        (lambda: InverseAutoregressiveFlow(D, context_features=0), "model.posterior.context_features is at least 1"),
        (lambda: InverseAutoregressiveFlow(D, hidden=[]), r"model.posterior.hidden.*found \[\]"),
        (lambda: flow_prior(1), "at least 2 dimensions; found 1"),
        (lambda: flow_prior(num_flows=1), "model.prior.num_flows is at least 2"),
        (lambda: flow_prior(hidden=[0]), r"model.prior.hidden.*found \[0\]"),
    ],
)
def test_flows_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

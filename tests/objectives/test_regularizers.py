"""Other penalties: covariances, discrepancies and singular values against plain loops and closed forms."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.latents import IMAGE, gaussian, regularizer_inputs, spec, vectors
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.distributions import MultivariateNormal, TransformedDistribution
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from vae_lab.core import LatentSpec
from vae_lab.objectives import Constant, Objective, elbo
from vae_lab.objectives.objective import Weights
from vae_lab.objectives.regularizers import DisentangledInferredPrior, MaximumMeanDiscrepancy, Spectral
from vae_lab.objectives.regularizers.latents import SCALES, squared_mmd
from vae_lab.objectives.regularizers.spectral import largest_singular_values
from vae_lab.posteriors import DiagonalGaussian

CONF = Path(__file__).parents[2] / "conf" / "objective" / "regularizers"
MINE = ("total_correlation", "dip_vae_i", "dip_vae_ii", "mmd", "spectral")
DIP = {"dip_vae_i": {"diagonal": 10.0, "covariance": "means"}, "dip_vae_ii": {"diagonal": 1.0, "covariance": "latents"}}


def dip(name, **options):
    return DisentangledInferredPrior(spec(), **{"weight": 1.0, **DIP[name], **options})


# DIP-VAE


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("name", DIP)
def test_dip_is_the_distance_of_torchs_covariance_from_the_identity(name, correlated):
    torch.manual_seed(0)
    means, factors = torch.randn(7, 3), torch.diag_embed(torch.rand(7, 3) + 0.1)
    posterior = gaussian(means, factors.diagonal(dim1=1, dim2=2))
    if correlated:
        factors = factors + torch.randn(7, 3, 3).tril(-1)
        posterior = MultivariateNormal(means, scale_tril=factors)
    covariance = torch.cov(means.T)
    if name == "dip_vae_ii":
        covariance = covariance + (factors @ factors.mT).mean(0)
    distance = (covariance - torch.eye(3)).square()
    factor = torch.ones(3, 3).fill_diagonal_(DIP[name]["diagonal"])
    assert_close(dip(name)(regularizer_inputs(posterior)), (factor * distance).sum())


def test_a_map_is_a_vector_of_all_its_places():
    torch.manual_seed(0)
    means, scales = torch.randn(9, 2, 2, 3), torch.rand(9, 2, 2, 3)
    maps, flat = gaussian(means, scales), gaussian(means.flatten(1), scales.flatten(1))
    of_maps = DisentangledInferredPrior(spec(vectors(2, 2, 3)), 1.0, **DIP["dip_vae_ii"])
    assert_close(of_maps(regularizer_inputs(maps)), dip("dip_vae_ii")(regularizer_inputs(flat)))
    widths = MaximumMeanDiscrepancy(spec(vectors(2, 2, 3)), 1.0).widths
    assert widths == MaximumMeanDiscrepancy(spec(vectors(12)), 1.0).widths


# MMD


def kernel_value(kernel, a, b, width):
    distance = float((a - b).square().sum())
    return math.exp(-distance / width) if kernel == "rbf" else width / (width + distance)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_mmd_is_plain_loops(kernel, unbiased):
    torch.manual_seed(0)
    a, b, widths = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64) + 1, (0.5, 3.0)

    def mean(first, second, same):
        pairs = [(i, j) for i in range(4) for j in range(4) if not (same and unbiased and i == j)]
        values = [kernel_value(kernel, first[i], second[j], width) for i, j in pairs for width in widths]
        return sum(values) / len(pairs)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert squared_mmd(a, b, kernel, widths, unbiased).item() == pytest.approx(expected)


def mean_similarity(shift, variance, width):
    """E exp(-d / width) of the squared distance d of two Gaussians whose difference is N(shift, variance I)."""
    spread = width + 2 * variance
    return float((width / spread) ** (len(shift) / 2) * math.exp(-shift.square().sum() / spread))


def test_the_unbiased_mmd_has_the_mean_of_the_closed_form_and_of_equals_0():
    torch.manual_seed(0)
    mean, scale, width = torch.tensor([1.0, -0.5]), 0.5, 4.0
    within = mean_similarity(torch.zeros(2), 2.0, width) + mean_similarity(torch.zeros(2), 2 * scale**2, width)
    exact = within - 2 * mean_similarity(mean, 1 + scale**2, width)
    prior, z, other = torch.randn(20_000, 8, 2), mean + scale * torch.randn(20_000, 8, 2), torch.randn(20_000, 8, 2)
    for latents, expected in ((z, exact), (other, 0.0)):
        values = squared_mmd(latents, prior, "rbf", (width,))
        assert values.mean().item() == pytest.approx(expected, abs=4 * float(values.std()) / math.sqrt(20_000))
    assert exact > 0.25
    # The biased one counts the pairs of each sample with itself, whose similarity is 1.
    biased = squared_mmd(z, prior, "rbf", (width,), unbiased=False).mean().item()
    assert biased == pytest.approx(exact + (2 - within) / 8, abs=5e-3)


def test_the_mmd_compares_each_sample_with_draws_of_its_own():
    regularizer = MaximumMeanDiscrepancy(spec(), 1.0)
    assert regularizer.widths == tuple(6 * scale for scale in SCALES["imq"])
    torch.manual_seed(0)
    seen = regularizer_inputs(gaussian(torch.randn(6, 3), 0.1), num_samples=3)
    torch.manual_seed(1)
    value = regularizer(seen)
    torch.manual_seed(1)
    draws = seen.trace.latents[0].prior.sample((3, 6))
    pairs = zip(seen.trace.latents[0].z, draws, strict=True)
    assert_close(value, sum(squared_mmd(z, draw, "imq", regularizer.widths) for z, draw in pairs) / 3)


@pytest.mark.parametrize("unbiased", [True, False])
def test_latents_that_coincide_have_a_finite_gradient(unbiased):
    means = torch.zeros(5, 3, requires_grad=True)
    MaximumMeanDiscrepancy(spec(), 1.0, unbiased=unbiased)(regularizer_inputs(gaussian(means, 1e-30))).backward()
    assert means.grad.isfinite().all() and (means.grad != 0).any()


def test_an_image_alone_has_no_covariance_and_a_biased_discrepancy_only():
    seen = regularizer_inputs(gaussian(torch.ones(1, 3), 0.1))
    assert dip("dip_vae_i")(seen).item() == dip("dip_vae_ii")(seen).item() == 0
    assert MaximumMeanDiscrepancy(spec(), 1.0)(seen).item() == 0
    assert MaximumMeanDiscrepancy(spec(), 1.0, unbiased=False)(seen).item() > 0


def test_on_a_sphere_the_widths_do_not_grow_with_its_dimension():
    widths = [MaximumMeanDiscrepancy(spec(LatentSpec("sphere", (d,), IMAGE)), 1.0, "rbf").widths for d in (3, 30)]
    assert widths == [(2.0,), (2.0,)]


# Spectral

# Kernels of a ladder's blocks and heads, and a linear layer; (out, in, k, k).
KERNELS = [(16, 32, 3, 3), (32, 16, 3, 3), (128, 128, 3, 3), (32, 64, 1, 1), (128, 512, 1, 1), (3, 16, 3, 3), (40, 90)]


def penalty(*layers):
    return Spectral(spec(), 1.0)(regularizer_inputs(gaussian(torch.zeros(2, 3), 1.0), layers=layers))


@pytest.mark.parametrize("shape", KERNELS)
def test_the_largest_singular_value_is_that_of_torchs_decomposition(shape):
    torch.manual_seed(0)
    layer = partial(nn.Linear, *shape[::-1]) if len(shape) == 2 else partial(nn.Conv2d, shape[1], shape[0], shape[2])
    weights = torch.stack([layer().weight.detach().flatten(1) for _ in range(4)])
    weights[1] *= 1e-12
    weights[2] += weights[2].mean(1, keepdim=True) * 5
    exact = torch.linalg.svdvals(weights)[:, 0]
    found = largest_singular_values(weights, 8)
    assert_close(found, exact, rtol=3e-4, atol=0)
    assert (found <= exact * (1 + 1e-5)).all()


def test_its_gradient_is_the_outer_product_of_the_singular_vectors():
    torch.manual_seed(0)
    weights = torch.randn(3, 5, 9, dtype=torch.float64, requires_grad=True)
    largest_singular_values(weights, 12).sum().backward()
    u, _, v = torch.linalg.svd(weights.detach(), full_matrices=False)
    assert_close(weights.grad, u[:, :, :1] @ v[:, :1], rtol=1e-4, atol=1e-5)


def test_the_penalty_is_the_sum_over_layers_whatever_their_shapes():
    torch.manual_seed(0)
    normalised = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    normalised.parametrizations.weight.original0.data *= 7
    weighted = [nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Conv1d(2, 3, 3), normalised]
    value = penalty(*weighted, nn.SiLU(), nn.GroupNorm(2, 8))
    exact = [torch.linalg.svdvals(layer.weight.flatten(1))[0] for layer in weighted]
    assert_close(value, sum(exact), rtol=1e-4, atol=0)
    value.backward()
    assert all((layer.weight.grad != 0).any() and layer.bias.grad is None for layer in weighted[:-1])
    assert (normalised.parametrizations.weight.original0.grad != 0).any()
    assert penalty(nn.SiLU()).item() == 0


def test_a_layer_counts_as_torchs_spectral_norm_sees_it():
    torch.manual_seed(0)
    for layer in (nn.ConvTranspose2d(6, 3, 4, 2), nn.Conv2d(4, 6, 3, groups=2), nn.Linear(5, 3)):
        value = penalty(layer)
        original = layer.weight.detach().clone()
        normalized = parametrizations.spectral_norm(layer, n_power_iterations=200)
        assert_close(normalized.weight * value, original, rtol=1e-3, atol=1e-4)


def test_a_layer_of_zeros_has_neither_a_value_nor_a_gradient_and_no_number_shows():
    layer = nn.Conv2d(3, 8, 3)
    nn.init.zeros_(layer.weight)
    value = penalty(layer)
    value.backward()
    assert value.item() == 0 and (layer.weight.grad == 0).all()
    nn.init.constant_(layer.weight, math.nan)
    assert penalty(layer).isnan()


# All of them


@pytest.mark.parametrize("name", MINE)
def test_each_file_builds_a_part_whose_gradient_reaches_the_encoder_also_under_half_precision(name):
    torch.manual_seed(0)
    part = instantiate(OmegaConf.load(CONF / f"{name}.yaml")[name])
    objective = Objective(elbo, Constant(), spec(), regularizers={name: part})
    encoder = nn.Linear(4, 6)
    images = torch.rand(8, 4)
    posterior = DiagonalGaussian(3)(encoder(images))
    seen = regularizer_inputs(posterior, layers=[encoder])
    terms = objective.terms(seen.trace, seen.x)
    torch.manual_seed(1)
    losses, values = objective(seen, terms, Weights())
    torch.manual_seed(1)
    penalty = objective.regularizers[name](seen)
    assert_close(values, {name: penalty.mean().detach()})
    assert_close(losses.mean(), -elbo(terms).mean() + objective.regularizers[name].weight * penalty.mean())
    penalty.mean().backward()
    assert encoder.weight.grad.isfinite().all() and (encoder.weight.grad != 0).any()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective.regularizers[name](seen)
    assert half.dtype == torch.float32
    assert_close(half, penalty)


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        (partial(DisentangledInferredPrior, **DIP["dip_vae_i"]), {"weight": -1.0}, "dip_vae_i.weight is a number of"),
        (partial(DisentangledInferredPrior, **DIP["dip_vae_ii"]), {"diagonal": -1.0}, "dip_vae_ii.diagonal"),
        (MaximumMeanDiscrepancy, {"weight": -2.0}, "mmd.weight is a number of at least 0; found -2"),
        (MaximumMeanDiscrepancy, {"scales": [1.0, 0.0]}, "mmd.scales are numbers above 0"),
        (MaximumMeanDiscrepancy, {"scales": []}, "at least one; found"),
        (Spectral, {"weight": -1.0}, "spectral.weight"),
        (Spectral, {"squarings": 0}, "spectral.squarings is at least 1; found 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(part, options, message):
    with pytest.raises(ValueError, match=message):
        part(spec(), **{"weight": 1.0, **options})


@pytest.mark.parametrize("latents", [[vectors(3), vectors(3)], [LatentSpec("codes", (3,), IMAGE)]])
def test_latents_of_several_layers_and_codes_are_refused(latents):
    for part in (partial(DisentangledInferredPrior, **DIP["dip_vae_i"]), MaximumMeanDiscrepancy):
        with pytest.raises(ValueError, match="Choose"):
            part(spec(*latents), weight=1.0)
    assert Spectral(spec(*latents), weight=1.0).weight == 1


def test_dip_asks_for_a_gaussian():
    flow = TransformedDistribution(gaussian(torch.zeros(4, 3), 1.0), [torch.distributions.ExpTransform()])
    with pytest.raises(ValueError, match=r"diagonal_gaussian, or full_covariance where latents are vectors \(found T"):
        dip("dip_vae_i")(regularizer_inputs(flow))

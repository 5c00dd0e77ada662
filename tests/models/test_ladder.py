"""Ladders: one layer is a plain VAE, every layer's terms are exact, what does not fit is refused with what does."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from vae_lab.core import ImageSpec, LatentSpec
from vae_lab.distributions.reshaped import UnflattenedBatch, unflatten_batch
from vae_lab.likelihoods import Bernoulli, LogisticMixture256
from vae_lab.metrics.importance import importance_bound
from vae_lab.models import VAE, LadderVAE
from vae_lab.networks.ladder_sizes import default_strides, nearest_size, resolutions
from vae_lab.objectives import elbo, importance_weighted_bound
from vae_lab.objectives.bounds import bound_terms, kl_per_dimension
from vae_lab.objectives.objective import apply_free_bits
from vae_lab.posteriors import (
    DiagonalGaussian,
    FullCovarianceGaussian,
    InverseAutoregressiveFlow,
    NearestCode,
    RelaxedCategorical,
    ResidualGaussian,
)
from vae_lab.priors import (
    ClassGaussian,
    ConditionalGaussian,
    Flat,
    GaussianMixture,
    StandardNormal,
    UniformCodes,
    VampPrior,
)

BINARY = ImageSpec(1, 8, 8, levels=2, num_classes=3)
FAMILIES = {
    "residual": (ResidualGaussian, ConditionalGaussian),
    "residual_unconditional": (ResidualGaussian, StandardNormal),
    "plain": (DiagonalGaussian, ConditionalGaussian),
    "full_covariance": (FullCovarianceGaussian, ConditionalGaussian),
    "mixture": (DiagonalGaussian, partial(GaussianMixture, num_components=3)),
    "flow": (partial(InverseAutoregressiveFlow, num_flows=2, hidden=[8], context_features=4), ConditionalGaussian),
    "codes": (partial(NearestCode, num_codes=5, code_dim=2), UniformCodes),
    "relaxed": (partial(RelaxedCategorical, num_categories=3), UniformCodes),
}


def ladder(families="residual", image=BINARY, likelihood=Bernoulli, **options):
    """Three layers at 4x4, 4x4 and 1x1, with weights that are neither zero nor small."""
    torch.manual_seed(0)
    posterior, prior = FAMILIES[families] if isinstance(families, str) else families
    sizes = {"latent_dim": 4, "layers": [2, 1], "width": 8, "max_width": 8, **options}
    model = LadderVAE(image, posterior=posterior, prior=prior, likelihood=likelihood, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(count=5, image=BINARY):
    torch.manual_seed(1)
    return (torch.rand(count, *image.shape) < 0.5).float()


# --- resolutions ---


@pytest.mark.parametrize(
    ("sides", "strides"),
    [
        ((8, 8), [(2, 2), (4, 4)]),
        ((28, 28), [(2, 2), (2, 2), (7, 7)]),
        ((32, 32), [(2, 2)] * 3 + [(4, 4)]),
        ((27, 27), [(3, 3)] * 3),
        ((50, 50), [(2, 2), (5, 5), (5, 5)]),
        ((24, 40), [(2, 2)] * 3 + [(3, 5)]),
        ((128, 128), [(2, 2)] * 5 + [(4, 4)]),
    ],
)
def test_an_image_is_divided_down_to_one_place(sides, strides):
    assert default_strides(sides) == strides


def sizes(image=(28, 28), layers=1, channels=None, strides=None, patch_size=1):
    return resolutions(image, layers, channels, strides, width=8, max_width=16, patch_size=patch_size)


def test_options_of_a_ladder_say_its_maps():
    assert [at.channels for at in sizes()] == [8, 16, 16]
    assert [at.num_layers for at in sizes(layers=3)] == [3, 3, 3]
    assert [at.sides for at in sizes(layers=[0, 2])] == [(14, 14), (7, 7)]
    assert [at.sides for at in sizes(channels=[3])] == [(14, 14)]
    assert [at.sides for at in sizes(strides=[1, 4])] == [(28, 28), (7, 7)]
    assert [at.sides for at in sizes(patch_size=2)] == [(28, 28), (14, 14), (7, 7), (1, 1)]
    assert [at.sides for at in sizes(patch_size=2, layers=[0, 2])] == [(28, 28), (14, 14)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": (29, 29)}, r"29x29 images .*Choose data.image_size=30"),
        ({"image": (215, 215)}, r"215x215 images .*Choose data.image_size=216"),
        ({"image": (29, 29), "patch_size": 4}, r"29x29 maps of patches .*Choose data.image_size=120"),
        ({"image": (1, 1), "patch_size": 8}, r"1x1 maps of patches .*Choose data.image_size=16"),
        ({"strides": [3], "patch_size": 2}, r"28x28 maps of patches.*Choose .* or data.image_size=54"),
        ({"strides": [2, 2, 2]}, r"stride 2 of resolution 3 .* 7x7.*model.strides=\[2, 2, 7\] or data.image_size=32"),
        ({"strides": [3]}, r"Choose model.strides=\[2, 2, 7\] or data.image_size=27"),
        ({"strides": [2, 0]}, r"model.strides .* at least 1"),
        ({"layers": [1, 2, 3, 4]}, r"3: 14x14, 7x7, 1x1.*Choose model.layers=\[1, 2, 3\]"),
        ({"layers": [2, 0]}, r"Choose model.layers=\[2, 1\]"),
        ({"layers": 0}, r"Choose model.layers=\[0, 0, 1\]"),
        ({"layers": []}, r"Choose model.layers=\[1, 1, 1\]"),
        ({"layers": [1, 1], "channels": [8, 8, 8]}, r"Choose model.channels=\[8, 8\]"),
        ({"channels": [8, -8]}, r"Choose model.channels=\[8, 1\]"),
    ],
)
def test_resolutions_that_cannot_be_name_the_nearest_that_can(options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sizes(**options)


def test_the_size_that_is_named_works():
    assert all(default_strides((nearest_size(size),) * 2) for size in (29, 31, 44, 58, 101, 215, 999))


# --- one layer is a plain VAE ---


class Part(nn.Module):
    """A ladder's way up as the encoder of a plain VAE, or its way down as the decoder."""

    def __init__(self, model, is_encoder):
        super().__init__()
        self.model, self.is_encoder, self.spatial_shape = model, is_encoder, model.latents[0].shape[1:]

    def forward(self, inputs):
        [block], start = self.model.top_down_blocks, self.model.start(None).expand(len(inputs), -1, -1, -1)
        if self.is_encoder:
            return block.posterior_params(start, self.model.bottom_up(inputs)[-1])
        return self.model.head(block(start, inputs))


@pytest.mark.parametrize("families", ["residual", "plain", "full_covariance", "mixture"])
@pytest.mark.parametrize("layers", [[1], [0, 1]])
def test_a_ladder_of_one_layer_is_a_plain_vae(families, layers):
    model, x = ladder(families, layers=layers), images()
    layer = model.layers[0]
    vae = VAE(
        BINARY,
        4,
        encoder=lambda *_: Part(model, True),
        decoder=lambda *_: Part(model, False),
        posterior=lambda _: layer.posterior,
        prior=lambda _: layer.prior,
        likelihood=Bernoulli,
    )
    assert vae.latents == model.latents
    for num_samples in (1, 3):
        terms = []
        for each in (model, vae):
            torch.manual_seed(2)
            terms.append(bound_terms(each(x, num_samples), x))
        assert_close(terms[0].log_px, terms[1].log_px)
        assert_close(terms[0].kl, terms[1].kl)
        assert_close(terms[0].log_ratio, terms[1].log_ratio)
    assert_close(model.reconstruct(x).mean, vae.reconstruct(x).mean)
    torch.manual_seed(3)
    drawn = model.sample(4).mean
    torch.manual_seed(3)
    assert_close(drawn, vae.sample(4).mean)


# --- the terms of a trace ---


@pytest.mark.parametrize("families", FAMILIES)
@pytest.mark.parametrize("num_samples", [1, 3])
def test_each_sample_goes_down_by_itself(families, num_samples):
    """What the trace says of sample s and image b is what the way down says of these latents alone."""
    model, x = ladder(families).eval(), images()
    trace = model(x, num_samples)
    terms = bound_terms(trace, x)
    assert terms.kl.shape == (3, num_samples, 5)
    for s in range(num_samples):
        for b in (0, 4):
            alone = []

            def again(prior, posterior, s=s, b=b, alone=alone):
                z = trace.latents[len(alone)].z[s, b : b + 1]
                alone.append(posterior().log_prob(z) - prior.log_prob(z))
                return z

            likelihood = model.likelihood(model.top_down_pass(again, None, model.bottom_up(x[b : b + 1])))
            assert_close(likelihood.log_prob(x[b : b + 1])[0], terms.log_px[s, b], rtol=1e-4, atol=1e-4)
            assert_close(sum(alone)[0], terms.log_ratio[s, b], rtol=1e-4, atol=1e-4)


def test_the_kl_of_each_layer_is_torchs_and_the_mean_of_its_log_ratio():
    model, x = ladder(), images(2)
    trace = model(x, 4000)
    for latent in trace.latents:
        q, p = latent.posterior.base_dist, latent.prior.base_dist
        exact = kl_divergence(Normal(q.loc, q.scale), Normal(p.loc, p.scale))
        assert_close(kl_per_dimension(latent), exact)
        gap = latent.log_ratio - exact.sum((-1, -2, -3))
        assert (gap.mean(0).abs() < 4 * gap.std(0) / math.sqrt(4000)).all()


def test_the_importance_bound_of_a_new_ladder_is_the_mean_over_its_prior():
    """A relative posterior starts at its prior, so that every weight is p(x|z)."""
    torch.manual_seed(0)
    model = LadderVAE(BINARY, 4, *FAMILIES["residual"], Bernoulli, layers=2, width=8)
    x = images()
    terms = bound_terms(model(x, 8), x)
    assert terms.kl.abs().max() == 0 and terms.log_ratio.abs().max() == 0
    assert_close(importance_weighted_bound(terms), terms.log_px.logsumexp(0) - math.log(8))
    assert importance_bound(model, x, 8).isfinite().all()


def test_free_bits_floor_every_layer():
    torch.manual_seed(0)
    model = LadderVAE(BINARY, 4, *FAMILIES["residual"], Bernoulli, layers=[2, 1], width=8)
    x = images()
    trace = model(x)
    floored = apply_free_bits(trace, bound_terms(trace, x), 0.25)
    assert_close(floored, 0.25 * torch.tensor([4.0, 64.0, 64.0]).view(3, 1, 1).expand(3, 1, 5))
    assert torch.autograd.grad(floored.sum(), model.top_down_blocks[0].posterior[-1].bias)[0].abs().max() == 0


# --- networks and families ---


@pytest.mark.parametrize("families", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"weight_norm": True, "conditional": True}])
def test_every_parameter_has_a_gradient(families, options):
    torch.manual_seed(0)
    model = LadderVAE(BINARY, 4, *FAMILIES[families], Bernoulli, layers=[2, 1], width=8, **options)
    x, y = images(), torch.arange(5) % 3 if model.conditional else None
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(2):  # what starts at zero lets no gradient by
        optimizer.zero_grad()
        loss = -elbo(bound_terms(model(x, 1, y), x))
        assert loss.isfinite().all()
        loss.mean().backward()
        optimizer.step()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_no_kl_and_no_density_overflows():
    prior = ConditionalGaussian(LatentSpec("vector", (4, 1, 1), BINARY)).conditioned_on(
        torch.tensor([[1e30, -1e30]]).repeat(4, 4)[..., None, None]
    )
    params = torch.tensor([1e30, -1e30]).repeat(4, 4).view(4, 8, 1, 1).requires_grad_()
    posterior = ResidualGaussian(4).relative_to(prior, params)
    kl = kl_divergence(posterior, prior)
    assert kl.isfinite().all() and (kl < 1e8).all()
    (kl + posterior.log_prob(posterior.mode)).sum().backward()
    assert params.grad.isfinite().all()


def test_half_precision_leaves_densities_in_float32():
    model, x = ladder(), images()
    with torch.autocast("cpu", torch.bfloat16):
        trace = model(x, 2)
        terms = bound_terms(trace, x)
    assert all(latent.z.dtype == torch.float32 for latent in trace.latents)
    assert terms.log_px.dtype == terms.kl.dtype == torch.float32
    assert_close(terms.kl.mean((1, 2)), bound_terms(model(x, 2), x).kl.mean((1, 2)), rtol=0.3, atol=0.3)


def test_weight_normalisation_keeps_lengths_apart_from_directions():
    model = ladder(weight_norm=True)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    for layer in convolutions:
        dims = (0, 2, 3) if isinstance(layer, nn.ConvTranspose2d) else (1, 2, 3)
        lengths = layer.parametrizations.weight.original0.abs().flatten()
        assert_close(layer.weight.square().sum(dims).sqrt(), lengths)
    assert len(convolutions) == len([k for k in model.state_dict() if k.endswith("weight.original0")])


@pytest.mark.parametrize("image", [ImageSpec(3, 32, 32), ImageSpec(3, 24, 40), ImageSpec(1, 27, 27)])
def test_a_ladder_takes_every_size_that_can_be_divided(image):
    model = ladder(image=image, likelihood=partial(LogisticMixture256, num_components=2), layers=1)
    x = torch.rand(2, *image.shape)
    assert model(x, 2).likelihood.log_prob(x).shape == (2, 2)
    assert model.latents[0].shape == (4, 1, 1)
    (vertical, horizontal), *_ = default_strides((image.height, image.width))
    assert model.latents[-1].shape == (4, image.height // vertical, image.width // horizontal)


def test_a_ladder_of_patches_begins_at_their_map():
    image = ImageSpec(3, 16, 24, num_classes=3)
    model = ladder(image=image, likelihood=LogisticMixture256, layers=1, patch_size=2, conditional=True)
    assert [spec.shape[1:] for spec in model.latents] == [(1, 1), (4, 6), (8, 12)]
    x, y = torch.rand(2, *image.shape), torch.tensor([0, 1])
    model(x, 2, y).likelihood.log_prob(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match=r"model.patch_size=3 .* 16x24 images.\nChoose .* 1, 2, 4, 8,"):
        ladder(image=image, patch_size=3)


def test_the_bounded_parameters_of_relative_and_conditional_gaussians():
    params = torch.tensor([[2.0, 0, -2, 0, 1, -1]])
    prior = ConditionalGaussian(LatentSpec("vector", (3,), BINARY))
    scales = torch.exp(5 * torch.tanh(params[:, 3:] / 5))
    given = prior.conditioned_on(params)
    assert_close((given.mean, given.stddev), (params[:, :3], scales))
    posterior = ResidualGaussian(3)(params)
    differences = 10 * torch.tanh(params[:, :3] / 10)
    assert_close((posterior.mean, posterior.stddev), (differences, scales))
    relative = ResidualGaussian(3).relative_to(given, params)
    assert_close((relative.mean, relative.stddev), (params[:, :3] + differences, scales.square()))
    assert_close((prior().mean, prior().stddev), (torch.zeros(3), torch.ones(3)))


# --- sampling, labels ---


def test_temperatures_of_zero_leave_nothing_to_chance():
    model = ladder()
    assert_close(model.sample(2, temperature=0).mean, model.sample(2, temperature=[0, 0, 0]).mean, rtol=0, atol=0)
    partly = [model.sample(6, temperature=[0, 1, 1]).mean for _ in range(2)]
    assert not torch.equal(*partly)
    torch.manual_seed(0)
    usual = model.sample(2).mean
    torch.manual_seed(0)
    assert torch.equal(usual, model.sample(2, temperature=[1, 1, 1]).mean)
    with pytest.raises(ValueError, match="each of the 3 stochastic layers"):
        model.sample(2, temperature=[1, 1])


def test_layers_that_are_not_resampled_keep_their_posteriors():
    model, x, layer = ladder(), images(), iter(range(3))

    def choose(prior, posterior):
        return prior.mean if next(layer) == 1 else posterior().mean

    expected = model.likelihood(model.top_down_pass(choose, None, model.bottom_up(x))).mean
    assert_close(model.resample(x, {1}, temperature=0).mean, expected)
    assert not torch.allclose(expected, model.reconstruct(x).mean)
    with pytest.raises(ValueError, match="found 3, expected 0 to 2"):
        model.resample(x, [3])


def test_labels_are_seen_on_the_way_up_and_on_the_way_down():
    model, x, y = ladder(conditional=True), images(), torch.tensor([0, 1, 2, 0, 1])
    torch.manual_seed(4)
    samples = model.sample(5, y, temperature=0).mean
    assert_close(samples[0], samples[3])
    assert not torch.allclose(samples[0], samples[1])
    ups = [model.bottom_up(model.label_plane(x, labels))[0] for labels in (y, (y + 1) % 3)]
    assert not torch.allclose(*ups)
    assert bound_terms(model(x, 3, y), x).kl.shape == (3, 3, 5)
    assert model.reconstruct(x, y).mean.shape == (5, 1, 8, 8)
    with pytest.raises(ValueError, match="give it the labels"):
        model.sample(5)
    with pytest.raises(ValueError, match="these images have no labels"):
        ladder(image=ImageSpec(1, 8, 8), conditional=True)


def test_priors_of_classes_go_with_labels():
    families = (ResidualGaussian, ClassGaussian)
    model, x, y = ladder(families, conditional=True), images(), torch.tensor([0, 1, 2, 0, 1])
    trace = model(x, 2, y)
    assert_close(trace.latents[1].prior.mean[1, 3], model.layers[1].prior.means[0])
    assert model.sample(5, y).mean.shape == (5, 1, 8, 8)
    with pytest.raises(ValueError, match="give it the labels"):
        ladder(families)


# --- families that do not go together ---


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ((NearestCode, ConditionalGaussian), "model/prior=uniform_codes"),
        ((DiagonalGaussian, VampPrior), "model/prior=conditional_gaussian"),
        ((ResidualGaussian, GaussianMixture), "model/prior=conditional_gaussian or standard_normal"),
        ((ResidualGaussian, Flat), "model/prior=conditional_gaussian or standard_normal"),
    ],
)
def test_families_that_do_not_go_together_are_refused(families, message):
    with pytest.raises(ValueError, match=message):
        ladder(families)


@pytest.mark.parametrize("option", ["latent_dim", "blocks", "squeeze", "width", "max_width", "patch_size"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ValueError, match=f"model.{option} is at least 1; found 0"):
        ladder(**{option: 0})


# --- batches of samples and images ---


@pytest.mark.parametrize("as_normal", [True, False])
def test_folding_changes_the_shape_alone(as_normal):
    torch.manual_seed(0)
    flat_q, flat_p = (Independent(Normal(torch.randn(6, 2, 3), torch.rand(6, 2, 3) + 0.1), 2) for _ in range(2))
    standard = Independent(Normal(torch.zeros(2, 3), 1.0), 2)
    q, p = (unflatten_batch(each, 2) if as_normal else UnflattenedBatch(each, 2) for each in (flat_q, flat_p))
    assert q.batch_shape == (2, 3) and q.event_shape == (2, 3)
    z = q.rsample()
    assert_close(q.log_prob(z).flatten(), flat_q.log_prob(z.flatten(0, 1)))
    other = torch.randn(4, 2, 3, 2, 3)
    assert_close(q.log_prob(other)[3], q.log_prob(other[3]))
    assert_close(kl_divergence(q, p).flatten(), kl_divergence(flat_q, flat_p))
    assert_close(kl_divergence(q, standard).flatten(), kl_divergence(flat_q, standard))
    assert_close(q.mean.flatten(0, 1), flat_q.mean)
    assert_close(q.mode.flatten(0, 1), flat_q.mode)
    assert unflatten_batch(standard, 2) is standard and unflatten_batch(flat_q, 1) is flat_q

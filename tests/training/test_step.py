"""One training step: gradients, clipping, averaging, schedules, seeds; and the sums over a split."""

import functools
import math

import pytest
import torch
from helpers.steps import BATCH, IMAGE, SMALL_MLP, composed, images_of, model_of, small_model, step_of, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal
from torch.testing import assert_close

from vae_lab.core import ImageSpec, Latent, Trace
from vae_lab.data.transforms import Preprocess
from vae_lab.metrics.elbo_sums import ElboSums, bits_per_dim
from vae_lab.objectives.bounds import BoundTerms, bound_terms
from vae_lab.objectives.schedules import Constant, Cosine, LinearWarmup
from vae_lab.training.build import build_node
from vae_lab.training.optimizer import OptimizerSettings, WeightAverage
from vae_lab.utils.distributed import Share
from vae_lab.utils.rng import BINARIZE, EVALUATE, INITIALIZE, ORDER, TRAIN, mix, seed_noise

pytestmark = pytest.mark.usefixtures("one_thread")


class Noiseless(Independent):
    """A posterior whose samples are its mean."""

    def rsample(self, sample_shape=()):
        return self.mean.expand(*sample_shape, *self.mean.shape)


def without_noise(model):
    """The same model with nothing left to chance."""
    posterior = model.posterior.forward
    model.posterior.forward = lambda params: Noiseless(posterior(params).base_dist, 1, validate_args=False)
    return model


# --- gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [32, 27, 8, 5])
def test_batches_in_one_step_give_the_gradient_of_one_large_batch(count):
    """Without noise the two differ by rounding alone, also where the last batch is smaller."""
    images = images_of(count)
    parts, whole = (step_of(without_noise(small_model()), batch_size=size) for size in (BATCH, 32))
    ours, theirs = parts(images, 0), whole(images, 0)
    assert_close(ours.terms, theirs.terms)
    assert ours.num_images == theirs.num_images == count
    assert_close(parts.optimizer.gradients[0], whole.optimizer.gradients[0])


def test_the_gradient_is_that_of_the_mean_loss_over_images():
    model, images = without_noise(small_model()), images_of(20)
    step = step_of(model)
    record = step(images, 0)
    x = images.float() / 255
    trace = model(x)
    terms = step.objective.terms(trace, x)
    loss = -(terms.log_px - terms.kl.sum(0)).mean()
    expected = torch.autograd.grad(loss, step.parameters)
    assert_close(step.optimizer.gradients[0], list(expected))
    assert_close(record.terms, torch.stack((loss, terms.log_px.mean(), terms.kl.sum(0).mean())).detach())


def test_gradients_do_not_leak_into_the_next_step():
    model, images = without_noise(small_model()), images_of(8)
    step = step_of(model)
    for number in range(3):
        step(images, number)
    assert_close(step.optimizer.gradients[2], step.optimizer.gradients[0], rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def norm_of(gradients) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


@pytest.mark.parametrize("limit", [0.5, 7.0, 1e9])
def test_clipping_shortens_a_gradient_that_is_too_long_and_keeps_its_direction(limit):
    images = images_of(20)
    free, clipped = step_of(small_model()), step_of(small_model(), clip_norm=limit)
    free_norm = free(images, 0, measure=True).gradient_norm
    norm = clipped(images, 0).gradient_norm
    (before,), (after,) = free.optimizer.gradients, clipped.optimizer.gradients
    assert float(free_norm) == pytest.approx(norm_of(before), rel=1e-5) == float(norm)  # both before clipping
    factor = min(1.0, limit / norm_of(before))
    assert norm_of(after) == pytest.approx(factor * norm_of(before), rel=1e-4)
    assert_close(after, [factor * g for g in before], rtol=1e-4, atol=1e-6)


def test_clipping_sees_the_whole_step_after_devices_have_averaged():
    """What is clipped is the gradient that the optimiser gets."""
    seen = []

    def reduce(parameters):
        seen.append(norm_of([p.grad for p in parameters]))
        for p in parameters:
            p.grad.mul_(3)

    step = step_of(small_model(), clip_norm=1e9, reduce_gradients=reduce)
    record = step(images_of(24), 0)
    assert len(seen) == 1  # once per step, though it had three batches
    assert float(record.gradient_norm) == pytest.approx(3 * seen[0], rel=1e-5)


def test_the_norm_is_measured_when_asked_for_only():
    step = step_of(small_model())
    assert step(images_of(8), 0).gradient_norm is None
    assert step(images_of(8), 0, measure=True).gradient_norm.shape == ()


def test_devices_that_average_their_gradients_make_one_larger_batch():
    images = images_of(32)
    halves = [step_of(without_noise(small_model()), batch_size=16, share=Share(rank, 2)) for rank in (0, 1)]
    for half in halves:
        half(images, 0)
    whole = step_of(without_noise(small_model()), batch_size=32)
    whole(images, 0)
    mean = [(a + b) / 2 for a, b in zip(*(half.optimizer.gradients[0] for half in halves), strict=True)]
    assert_close(mean, whole.optimizer.gradients[0])


LIKELIHOODS = {
    "bernoulli": ImageSpec(1, 8, 8, 2),
    "continuous_bernoulli": IMAGE,
    "gaussian": IMAGE,
    "gaussian_fixed": ImageSpec(3, 8, 8),
    "gaussian_optimal": ImageSpec(3, 8, 8),
    "gaussian_color": ImageSpec(3, 8, 8),
    "laplace": ImageSpec(3, 8, 8),
    "logistic_mixture": ImageSpec(3, 8, 8),
}
NETWORKS = {
    "mlp": ("model.latent_dim=4",),
    "conv": ("model.latent_dim=4", "model.encoder.channels=[8,16]", "model.decoder.channels=[16,8]"),
    "resnet": ("model.latent_dim=4", "model.encoder.channels=[8,16]", "model.decoder.channels=[16,8]"),
}


@pytest.mark.parametrize(
    ("model", "likelihood"),
    [*(("mlp", name) for name in LIKELIHOODS), ("conv", "gaussian_color"), ("resnet", "logistic_mixture")],
)
def test_every_parameter_of_every_model_is_trained(model, likelihood):
    """After the first step: a residual block starts as the identity, its inner layers get their gradient then."""
    image = LIKELIHOODS[likelihood]
    binarize = "threshold" if image.levels == 2 else "none"
    trained = model_of(f"model={model}", f"model/likelihood={likelihood}", *NETWORKS[model], image=image)
    assert trained.is_mass_function is (likelihood in ("bernoulli", "logistic_mixture"))
    step = step_of(trained, preprocess=Preprocess(binarize), lr=0.01)
    before = weights(trained)
    for number in range(3):
        assert step(images_of(4, image), number).terms.isfinite().all()
    names = [name for name, p in trained.named_parameters() if p.requires_grad]
    silent = [name for name, g in zip(names, step.optimizer.gradients[-1], strict=True) if g is None or not g.any()]
    assert silent == []
    assert all(g.isfinite().all() for g in step.optimizer.gradients[-1])
    kept = [name for (name, p), old in zip(trained.named_parameters(), before, strict=True) if torch.equal(p, old)]
    assert kept == [name for name, p in trained.named_parameters() if not p.requires_grad]


# --- a pure function of weights, images and number --------------------------------------------------------

CHANCE = Preprocess("dynamic", flip=True, shift=1)
ADAM = functools.partial(torch.optim.Adam, fused=True)


def outcome(step_number=3, seed=0, count=20, state=1):
    """What a step with noise, augmentation and accumulation does to the same weights and images."""
    torch.manual_seed(state)  # another past, which must not matter
    torch.rand(state)
    model = small_model()
    torch.manual_seed(state + 1)
    step = step_of(model, algorithm=ADAM, preprocess=CHANCE, lr=0.01, seed=seed, ema_decay=0.9)
    step.average = WeightAverage(model, 0.9)
    record = step(images_of(count), step_number)
    return torch.cat([record.terms, *(w.flatten() for w in (*weights(model), *weights(step.average.model)))])


def test_a_step_is_a_pure_function_of_weights_images_and_its_number():
    assert torch.equal(outcome(state=1), outcome(state=2))


@pytest.mark.parametrize("other", [{"step_number": 4}, {"seed": 1}])
def test_steps_and_seeds_have_noise_of_their_own(other):
    assert not torch.equal(outcome(), outcome(**other))


def test_batches_of_a_step_have_noise_of_their_own():
    """The same image eight times over in each of two batches: other latents, so another loss."""
    step, found = step_of(small_model()), []
    step.model.decoder.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    step(images_of(1).expand(16, -1, -1, -1), 0)
    assert len(found) == 2
    assert len(torch.cat(found).unique(dim=0)) == 16


def test_streams_and_numbers_are_mixed_into_different_seeds():
    streams = (TRAIN, EVALUATE, ORDER, BINARIZE, INITIALIZE)
    seeds = {mix(seed, stream, rank, step) for seed in range(4) for stream in streams for rank in range(4)
             for step in range(200)}  # fmt: skip
    assert len(seeds) == 4 * len(streams) * 4 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 2) != mix(2, 1) and mix(1) != mix(1, 0)


@given(st.integers(-(2**31), 2**63), st.integers(0, 2**40))
def test_any_seed_seeds_the_noise(seed, step):
    device = torch.device("cpu")
    seed_noise(device, seed, TRAIN, 0, step)
    first = torch.rand(3)
    seed_noise(device, seed, TRAIN, 0, step)
    assert torch.equal(torch.rand(3), first)


# --- learning rate and averaged weights -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(), [1.0] * 6),
        (LinearWarmup(4), [0, 0.25, 0.5, 0.75, 1, 1]),
        (Cosine(2), [1 / 3, 2 / 3, *((1 + math.cos(math.pi * i / 4)) / 2 for i in range(4))]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule, factors):
    step = step_of(small_model(), lr=0.1, schedule=schedule, total_steps=6)
    for number in range(6):
        step(images_of(8), number)
    assert step.optimizer.rates == pytest.approx([0.1 * factor for factor in factors])
    assert step.optimizer.rates == [step.rates(number).lr for number in range(6)]
    step(images_of(8), 1)  # the number says it, not how many steps were made
    assert step.optimizer.rates[-1] == pytest.approx(0.1 * factors[1])


def test_plain_gradient_descent_moves_by_the_rate_times_the_gradient():
    model = small_model()
    step, before = step_of(model, lr=1e-4), weights(model)
    step(images_of(8), 0)
    trained = [p for p in model.parameters() if p.requires_grad]
    kept = [w for w, p in zip(before, model.parameters(), strict=True) if p.requires_grad]
    expected = [w - 1e-4 * g for w, g in zip(kept, step.optimizer.gradients[0], strict=True)]
    assert_close([p.detach() for p in trained], expected)


def test_averaged_weights_follow_their_recurrence():
    """a <- d a + (1 - d) w after each step, d = min(decay, (1 + step) / (10 + step))."""
    model = model_of(*SMALL_MLP, "model/likelihood=gaussian_optimal")
    average = WeightAverage(model, 0.3)
    step = step_of(model, algorithm=torch.optim.Adam, lr=0.01, average=average)
    expected = [w.double() for w in weights(model)]
    for number in range(12):
        step(images_of(8, seed=number), number)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = [decay * a + (1 - decay) * w.double() for a, w in zip(expected, weights(model), strict=True)]
    assert_close([w.double() for w in weights(average.model)], expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(average.model.buffers(), model.buffers(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights(average.model), weights(model), strict=True))


def test_what_was_fitted_to_averaged_weights_stays_theirs():
    model = model_of(*SMALL_MLP, "model/likelihood=gaussian_optimal")
    average = WeightAverage(model, 0.9)
    average.model.likelihood.fit(torch.tensor([0.25]))
    average.update(model, 0.1)
    assert average.model.likelihood.mse == 0.25 and model.likelihood.mse != 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "optimizer.lr"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm"),
        ({"accumulate": 0}, "optimizer.accumulate"),
        ({"ema_decay": 1.0}, "optimizer.ema_decay"),
        ({"ema_decay": 0.0}, "optimizer.ema_decay"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerSettings(torch.optim.SGD, **options)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_configured_optimisers_leave_fixed_parameters_out(name):
    model = small_model()  # its likelihood holds a fixed scale
    built = build_node(composed(f"optimizer={name}").optimizer).build(model.parameters())
    held = [p for group in built.param_groups for p in group["params"]]
    assert len(held) == sum(p.requires_grad for p in model.parameters()) == len(list(model.parameters())) - 1
    assert type(built).__name__.lower() == name and built.defaults["fused"] is True
    assert built.defaults["weight_decay"] == (0.01 if name == "adamw" else 0)


# --- sums over a split ------------------------------------------------------------------------------------

DIM = 3


def evaluated(count: int, samples: int = 2, seed: int = 0) -> tuple[Trace, BoundTerms, torch.Tensor]:
    """A pass that never was: random terms and posteriors of `count` images."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    mean, scale = draw(count, DIM) * torch.tensor([2.0, 1.0, 0.01]), draw(count, DIM).exp()
    posterior = Independent(Normal(mean, scale), 1)
    prior = Independent(Normal(torch.zeros(DIM), torch.ones(DIM)), 1)
    nothing = torch.zeros(samples, count)
    latent = Latent(nothing, posterior, prior)
    terms = BoundTerms(100 * draw(samples, count) - 500, nothing, draw(1, samples, count).exp())
    return Trace(prior, (latent,)), terms, 10 * draw(count)


def part_of(whole: tuple, start: int, end: int) -> tuple[Trace, BoundTerms, torch.Tensor]:
    trace, terms, loss = whole
    (latent,) = trace.latents
    base = latent.posterior.base_dist
    posterior = Independent(Normal(base.loc[start:end], base.scale[start:end]), 1)
    cut = BoundTerms(*(term[..., start:end] for term in terms[:3]))
    return Trace(trace.likelihood, (latent._replace(posterior=posterior),)), cut, loss[start:end]


def plain_means(whole: tuple) -> dict[str, float]:
    _, terms, loss = whole
    log_px, kl = terms.log_px.double().mean(), terms.kl.double().mean()
    elbos = (terms.log_px - terms.kl.sum(0)).double().mean(0)
    error = float(elbos.std()) / math.sqrt(len(elbos)) if len(elbos) > 1 else 0.0
    return {"elbo": float(log_px - kl), "log_px": float(log_px), "kl": float(kl), "loss": float(loss.double().mean()),
            "elbo_stderr": error}  # fmt: skip


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), samples=st.integers(1, 3))
def test_sums_of_a_split_are_plain_means_over_images_whatever_the_batches(sizes, samples):
    whole = evaluated(sum(sizes), samples)
    sums, start = ElboSums(DIM), 0
    for size in sizes:
        sums.update(*part_of(whole, start, start + size))
        start += size
    found = {name: float(value) for name, value in sums.compute().items()}
    assert found == pytest.approx(plain_means(whole), rel=1e-5, abs=1e-3)
    base = whole[0].latents[0].posterior.base_dist
    variance, mean = base.scale.double() ** 2, base.loc.double()
    kl = 0.5 * (variance + mean**2 - 1 - variance.log())
    assert_close(sums.kl_means().double(), kl.mean(0), rtol=1e-4, atol=1e-5)


def test_sums_of_devices_add_up():
    """What torchmetrics does across processes: states are summed."""
    whole, parts = evaluated(50), []
    for start, end in ((0, 33), (33, 50)):
        sums = ElboSums(DIM)
        sums.update(*part_of(whole, start, end))
        parts.append(sums)
    assert set(parts[0]._reductions) == {
        *("totals", "elbo_moments", "count", "kl_sums", "mean_sums", "square_sums", "layer_sums")
    }
    for name, reduction in parts[0]._reductions.items():
        setattr(parts[0], name, reduction(torch.stack([getattr(part, name) for part in parts])))
    found = {name: float(value) for name, value in parts[0].compute().items()}
    assert found == pytest.approx(plain_means(whole), rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0])
def test_units_are_active_if_their_mean_varies_by_more_than_a_hundredth(offset):
    """Means +-a around an offset have variance a^2."""
    amplitudes = torch.tensor([0.0, 0.09, 0.11, 2.0])
    sign = torch.tensor([1.0, -1.0]).repeat(500)[:, None]
    sums = ElboSums(4)
    for part in (offset + sign * amplitudes).split(300):
        posterior = Independent(Normal(part, torch.ones_like(part)), 1)
        prior = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
        nothing = torch.zeros(1, len(part))
        trace = Trace(prior, (Latent(nothing, posterior, prior),))
        sums.update(trace, BoundTerms(nothing, nothing, nothing[None]), nothing[0])
    assert sums.active().tolist() == [False, False, True, True]


def test_a_posterior_that_does_not_factorise_has_no_dimensions_but_active_units():
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    posterior = torch.distributions.MultivariateNormal(torch.arange(5.0)[:, None] * torch.tensor([0, 1]), torch.eye(2))
    zeros = torch.zeros(1, 5)
    sums = ElboSums(2)
    sums.update(Trace(prior, (Latent(zeros, posterior, prior),)), BoundTerms(zeros, zeros, zeros[None]), zeros[0])
    assert sums.kl_means() is None and sums.latent_metrics() == {"active_units": 1.0}
    assert float(sums.compute()["elbo"]) == 0


def test_bits_per_dimension_of_a_fair_coin_is_one():
    assert bits_per_dim(784 * math.log(2), 784) == pytest.approx(1)
    assert bits_per_dim(12 * math.log(256), 12) == pytest.approx(8)


@pytest.mark.parametrize(
    ("posterior", "prior", "names"),
    [("diagonal_gaussian", "vamp", {"active_units"}), ("full_covariance", "standard_normal", {"active_units"}),
     ("delta", "flat", {"active_units"}), ("von_mises_fisher", "uniform_sphere", {"active_units"}),
     ("iaf", "standard_normal", set()), ("relaxed_categorical", "uniform_codes", set()),
     ("diagonal_gaussian", "standard_normal", {"active_units", "kl/dim_0", "kl/dim_1", "kl/dim_2"})],
)  # fmt: skip
def test_every_posterior_with_a_mean_has_active_units(posterior, prior, names):
    model = model_of(
        *SMALL_MLP, "model/likelihood=gaussian_fixed", f"model/posterior={posterior}", f"model/prior={prior}"
    )
    sums, x = ElboSums.for_latents(model.latents), torch.rand(6, *model.image.shape)
    trace = model.eval()(x)
    terms = bound_terms(trace, x)
    sums.update(trace, terms, terms.log_px[0])
    assert sums.latent_metrics().keys() == names

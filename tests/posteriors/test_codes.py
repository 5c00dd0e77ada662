"""Latents of codes: mass functions sum to 1, the codebook is the paper's averages, KLs are sums written out."""

import copy
import itertools
import math
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributions import OneHotCategorical
from torch.testing import assert_close

from vae_lab.core import ImageSpec, Latent, LatentSpec, PriorInputs, RegularizerInputs, Trace, TrainingSpec
from vae_lab.distributions.reshaped import unflatten_batch
from vae_lab.metrics.diagnostics import CodeUsage
from vae_lab.models.base import latent_spec, point_estimate
from vae_lab.objectives.bounds import closed_form_kl
from vae_lab.objectives.regularizers import Commitment
from vae_lab.posteriors import DiagonalGaussian, NearestCode, RelaxedCategorical
from vae_lab.posteriors.codes import Codebook
from vae_lab.priors import AutoregressiveCodes, UniformCodes
from vae_lab.priors.temperature import with_temperature
from vae_lab.training.preflight import codebook_size_warning

IMAGE = ImageSpec(1, 4, 4)


def every_latent(codes, code_shape):
    """All latents that there are, (K^positions, *event)."""
    numbers = itertools.product(range(codes.num_codes), repeat=math.prod(code_shape))
    return codes.embed(torch.tensor(list(numbers)).reshape(-1, *code_shape))


def every_mass(distribution, latents):
    """Of each latent (N, *event) under each of a batch, (N, *batch)."""
    batch = [1] * len(distribution.batch_shape)
    return distribution.log_prob(latents.reshape(len(latents), *batch, *latents.shape[1:])).exp()


def chi_square(codes, samples, expected):
    """Of the sequences of code numbers in samples (N, *event) against their masses, in the order of `every_latent`."""
    numbers = codes.indices(samples).flatten(1)
    place_values = codes.num_codes ** torch.arange(numbers.shape[1]).flip(0)
    counts = torch.bincount(numbers @ place_values, minlength=len(expected))
    return ((counts - len(samples) * expected).square() / (len(samples) * expected)).sum()


def trace_of(family, params, prior=None, num_samples=2):
    posterior = family(params)
    codes = getattr(family, "codes", None)
    prior = (
        posterior if prior is None else prior(latent_spec(family, params.shape[2:], IMAGE))(PriorInputs(codes=codes))
    )
    return Trace(posterior, (Latent(posterior.rsample((num_samples,)), posterior, prior),))


# --- the codebook -----------------------------------------------------------------------------------------


def used_codebook(vectors, usage=1.0, **options):
    """A codebook that has seen `usage` outputs of each code, all where the vectors are."""
    book = Codebook(1, vectors.shape[1], len(vectors), **options)
    book.vectors.copy_(vectors)
    book.usage.fill_(usage)
    book.sums.copy_(usage * vectors)
    return book


def follow_plainly(vectors, sums, usage, rows, decay):
    """Appendix A.1 of van den Oord et al., an output and a code at a time."""
    groups = [[] for _ in vectors]
    for row in rows:
        groups[int((vectors - row).norm(dim=1).argmin())].append(row)
    for i, group in enumerate(groups):
        usage[i] = decay * usage[i] + (1 - decay) * len(group)
        sums[i] = decay * sums[i] + (1 - decay) * sum(group, torch.zeros(rows.shape[1]))
        vectors[i] = sums[i] / usage[i]


def test_the_codes_follow_the_papers_moving_averages():
    torch.manual_seed(0)
    vectors, decay = torch.randn(5, 3), 0.8
    book = used_codebook(vectors, decay=decay, restart_below=0.0)
    sums, usage = vectors.clone(), torch.ones(5)
    for _ in range(4):
        rows = torch.randn(20, 3)
        book(rows)
        follow_plainly(vectors, sums, usage, rows, decay)
        assert_close(book.vectors, vectors)
        assert_close(book.usage, usage)


def test_the_first_batch_makes_the_codes_and_counts_whole():
    torch.manual_seed(0)
    rows = torch.randn(6, 2)
    as_many, more = Codebook(1, 2, num_codes=6), Codebook(1, 2, num_codes=16)
    numbers = as_many(rows)
    assert_close(as_many.vectors[numbers[:, 0]], rows)
    assert sorted(numbers.flatten().tolist()) == list(range(6))
    assert_close(more.embed(more(rows)), rows)
    fewer = Codebook(1, 2, num_codes=2)
    numbers = fewer(rows)[:, 0]
    for i in range(2):
        assert_close(fewer.vectors[i], rows[numbers == i].mean(0))


def test_a_dead_code_starts_anew_from_the_batch():
    vectors = torch.tensor([[0.0, 0.0], [50.0, 50.0], [5.0, 0.0]])
    book = used_codebook(vectors, usage=10.0, restart_below=0.3)
    book.usage[1], book.sums[1] = 1.0, vectors[1]  # less than 0.3 of an even share, (10 + 1 + 10) / 3
    rows = torch.tensor([[4.0, 1.0]]).expand(7, 2)
    numbers = book(rows)
    assert numbers.unique().tolist() == [1]  # used by the very batch that it came from
    assert_close(book.vectors[1], rows[0])
    assert_close(book.usage[1].item(), 0.99 * 7 + 0.01 * 7)
    assert_close(book.vectors[[0, 2]], vectors[[0, 2]])


def test_nothing_moves_in_evaluation_nor_when_codes_are_only_looked_up():
    torch.manual_seed(0)
    family = NearestCode(4, num_codes=5)
    family(torch.randn(20, 4))
    before = copy.deepcopy(family.state_dict())
    family.codes.indices(torch.randn(20, 4))
    family.eval()(torch.randn(20, 4))
    for name, value in family.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_nearest_code_is_found_far_from_the_origin_and_under_autocast():
    torch.manual_seed(0)
    book = used_codebook(1000 + 0.1 * torch.randn(64, 8)).eval()
    rows = 1000 + 0.1 * torch.randn(200, 8)
    exact = torch.cdist(rows.double(), book.vectors.double()).argmin(1, keepdim=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(rows), exact)


def averaged_by(rank, folder, count):
    """One process of `count`, each with its part of three batches; what it ends with goes into the folder."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count,
                            timeout=timedelta(seconds=30))  # fmt: skip
    book, batches = for_processes()
    torch.manual_seed(rank)  # the processes draw different noise
    numbers = [book(rows.chunk(count)[rank]) for rows in batches]
    restarted = Codebook(1, 3, num_codes=50)  # more than there are outputs: some stay as they were drawn
    restarted(batches[0].chunk(count)[rank])
    torch.save((book.state_dict(), numbers, restarted.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def for_processes():
    generator = torch.Generator().manual_seed(0)
    vectors, batches = torch.randn(5, 3, generator=generator), torch.randn(3, 40, 3, generator=generator)
    return used_codebook(vectors, decay=0.8, restart_below=0.0), batches


def test_processes_keep_equal_books_those_of_one_process_with_all_images(tmp_path):
    torch.multiprocessing.start_processes(averaged_by, (str(tmp_path), 2), 2, start_method="fork")
    (first, first_numbers, restarted), (second, second_numbers, again) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    book, batches = for_processes()
    for rows, *parts in zip(batches, first_numbers, second_numbers, strict=True):
        assert torch.equal(torch.cat(parts), book(rows))
    for name, value in book.state_dict().items():
        assert_close(first[name], value)
        assert torch.equal(first[name], second[name])
        assert torch.equal(restarted[name], again[name])


# --- quantised latents ------------------------------------------------------------------------------------


def trained(family, *params):
    for batch in params:
        family(batch)
    return family.eval()


@pytest.mark.parametrize("places", [(), (2, 3)])
def test_quantised_latents_are_codes_to_the_last_bit_and_pass_the_gradient_on(places):
    torch.manual_seed(0)
    family = NearestCode(6, num_codes=7, code_dim=2)
    params = torch.randn(5, 6, *places, requires_grad=True)
    posterior = family(params)
    z = posterior.rsample((3,))
    assert z.shape == (3, 5, 6, *places) and posterior.codes.shape == (5, 3, *places)
    assert torch.equal(z[1], family.codes.embed(posterior.codes))
    assert torch.equal(family.codes.indices(z[2]), posterior.codes)
    assert torch.equal(z[0], posterior.mode) and torch.equal(z[0], posterior.mean)
    upstream = torch.randn_like(z)
    z.backward(upstream)
    assert_close(params.grad, upstream.sum(0))


def test_a_place_of_a_map_is_quantised_as_a_vector_would_be():
    torch.manual_seed(0)
    family = trained(NearestCode(4, num_codes=9), torch.randn(50, 4))
    params = torch.randn(2, 4, 3, 5)
    z = family(params).mode
    for place in itertools.product(range(3), range(5)):
        assert torch.equal(z[:, :, *place], family(params[:, :, *place]).mode)


def test_a_quantised_posterior_is_a_mass_function():
    torch.manual_seed(0)
    family = trained(NearestCode(4, num_codes=3, code_dim=2), torch.randn(50, 4))
    posterior = family(torch.randn(5, 4))
    masses = every_mass(posterior, every_latent(family.codes, (2,)))
    assert_close(masses.sum(0), torch.ones(5))
    assert_close(posterior.log_prob(posterior.rsample((2,))), torch.zeros(2, 5))
    assert_close(posterior.entropy(), torch.zeros(5))


@pytest.mark.parametrize(("places", "code_dim", "positions"), [((), None, 1), ((), 2, 3), ((2, 4), 3, 16)])
def test_the_kl_of_codes_is_minus_their_log_mass(places, code_dim, positions):
    family = trained(NearestCode(6, num_codes=11, code_dim=code_dim), torch.randn(50, 6, *places))
    (latent,) = trace_of(family, torch.randn(5, 6, *places), UniformCodes).latents
    assert_close(closed_form_kl(latent), torch.full((5,), positions * math.log(11)))
    assert_close(latent.log_ratio, torch.full((2, 5), positions * math.log(11)))
    (latent,) = trace_of(family, torch.randn(5, 6, *places), AutoregressiveCodes).latents
    assert_close(closed_form_kl(latent), -latent.prior.log_prob(latent.z[0]))
    assert_close(latent.log_ratio[1], closed_form_kl(latent))


def test_commitment_is_the_squared_distance_to_constant_codes():
    torch.manual_seed(0)
    family = NearestCode(4, num_codes=3)
    params = torch.randn(5, 4, 2, 2, requires_grad=True)
    trace = trace_of(family, params)
    commitment = Commitment(TrainingSpec(IMAGE, (latent_spec(family, (2, 2), IMAGE),), 100))
    seen = RegularizerInputs(trace, torch.rand(5, 1, 4, 4), lambda z: z, ())
    codes = family.codes.embed(trace.latents[0].posterior.codes)
    penalty = commitment(seen)
    assert_close(penalty, (params - codes).square().sum((1, 2, 3)))
    penalty.sum().backward()
    assert_close(params.grad, 2 * (params - codes).detach())
    two = commitment(seen._replace(trace=trace._replace(latents=2 * trace.latents)))
    assert_close(two, 2 * penalty)
    posterior = trace.latents[0].posterior  # S = 2 samples of 5 images, as a lower layer of a ladder has them
    both = NearestCode(4, num_codes=3).eval()(torch.randn(10, 4))
    expected = (both.inputs - both.mode).square().sum(1)
    lower = Latent(both.mode.unflatten(0, (2, 5)), unflatten_batch(both, 2), posterior)
    assert_close(commitment(seen._replace(trace=Trace(both, (lower,)))), (expected[:5] + expected[5:]) / 2)


def test_commitment_asks_for_quantised_latents():
    vectors = latent_spec(DiagonalGaussian(2), (), IMAGE)
    with pytest.raises(ValueError, match="choose model/posterior=nearest_code"):
        Commitment(TrainingSpec(IMAGE, (vectors,), 100))
    relaxed = RelaxedCategorical(2)
    commitment = Commitment(TrainingSpec(IMAGE, (vectors, latent_spec(relaxed, (), IMAGE)), 100))
    with pytest.raises(ValueError, match="choose model/posterior=nearest_code"):
        commitment(RegularizerInputs(trace_of(relaxed, torch.randn(5, 20)), torch.rand(5, 1, 4, 4), lambda z: z, ()))


# --- categorical latents ----------------------------------------------------------------------------------


def test_one_hot_latents_have_torchs_masses_which_sum_to_one():
    torch.manual_seed(0)
    family = RelaxedCategorical(2, num_categories=3)
    params = torch.randn(5, 6, 1, 2)  # two variables at each of two places
    posterior, latents = family(params), every_latent(family.codes, (2, 1, 2))
    masses = every_mass(posterior, latents)
    assert_close(masses.sum(0), torch.ones(5))
    torchs = OneHotCategorical(logits=params.unflatten(1, (2, 3)).movedim(2, -1))
    expected = torchs.log_prob(latents.unflatten(1, (2, 3)).movedim(2, -1).unsqueeze(1)).sum((-1, -2, -3)).exp()
    assert_close(masses, expected)
    assert_close(posterior.entropy(), -(masses * masses.log()).sum(0))
    assert_close(posterior.mean, (masses[..., None, None, None] * latents.unsqueeze(1)).sum(0))
    assert torch.equal(posterior.mode, latents[masses.argmax(0)])
    assert torch.equal(point_estimate(posterior), posterior.mode)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_samples_relaxed_or_not_are_largest_where_the_categorical_variables_are(training, temperature):
    torch.manual_seed(0)
    family = RelaxedCategorical(2, num_categories=3, temperature=temperature).train(training)
    posterior = family(torch.randn(1, 6))
    expected = every_mass(posterior, every_latent(family.codes, (2,)))[:, 0]
    z = posterior.rsample((50_000,))[:, 0]
    assert chi_square(family.codes, z, expected) < 26.1  # one in a thousand of 8 degrees is above
    assert_close(z.unflatten(1, (2, 3)).sum(2), torch.ones(50_000, 2))
    assert bool(((z == 0) | (z == 1)).all()) is not training
    params = torch.randn(4, 6, 2, 2, requires_grad=True)
    z = family(params).rsample((3,))
    assert z.shape == (3, 4, 6, 2, 2) and z.requires_grad is training
    if training:
        (gradient,) = torch.autograd.grad(z.square().sum(), params)
        assert gradient.isfinite().all() and (gradient != 0).all()


@pytest.mark.parametrize("places", [(), (1, 2)])
def test_the_mean_log_mass_of_relaxed_samples_is_minus_the_entropy_and_has_its_gradient(places):
    torch.manual_seed(0)
    params = (2 * torch.randn(4, 6, *places)).requires_grad_()
    posterior = RelaxedCategorical(2, num_categories=3)(params)
    log_masses = posterior.log_prob(posterior.rsample((20_000,)))
    error = log_masses.std(0) / math.sqrt(20_000)
    assert ((log_masses.mean(0) + posterior.entropy()).abs() < 4 * error).all()
    expected = torch.autograd.grad(-posterior.entropy().sum(), params, retain_graph=True)
    assert_close(torch.autograd.grad(log_masses.mean(0).sum(), params), expected)


def test_the_kl_of_categorical_latents_is_the_sum_over_their_values():
    torch.manual_seed(0)
    family = RelaxedCategorical(2, num_categories=3)
    params = torch.randn(5, 6, 1, 2, requires_grad=True)
    (latent,) = trace_of(family, params, UniformCodes).latents
    masses = every_mass(latent.posterior, every_latent(family.codes, (2, 1, 2)))
    kl = closed_form_kl(latent)
    assert_close(kl, (masses * (masses.log() + 4 * math.log(3))).sum(0))
    kl.sum().backward()
    assert params.grad.isfinite().all() and (params.grad != 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_kl_of_categorical_latents_to_an_autoregressive_prior_is_estimated(training):
    torch.manual_seed(0)
    family = RelaxedCategorical(2, num_categories=3).train(training)
    prior = partial(AutoregressiveCodes, width=4, depth=1, heads=1)
    (latent,) = trace_of(family, torch.randn(5, 6), prior, num_samples=5_000).latents
    latents = every_latent(family.codes, (2,))
    masses = every_mass(latent.posterior, latents)
    exact = (masses * (masses.log() - latent.prior.log_prob(latents).unsqueeze(1))).sum(0)
    assert_close(closed_form_kl(latent).mean(0), exact, atol=0.04, rtol=0)


# --- priors -----------------------------------------------------------------------------------------------


def codes_and_prior(make, code_shape=(1, 2, 2), num_codes=3, code_dim=2, **options):
    """A codebook, and a prior over maps or vectors of its codes."""
    torch.manual_seed(0)
    book = Codebook(code_shape[0], code_dim, num_codes).eval()
    latent = LatentSpec("codes", (code_shape[0] * code_dim, *code_shape[1:]), IMAGE, num_codes, code_shape)
    return book, make(latent, **options)


def uniform(**options):
    return codes_and_prior(UniformCodes, **options)


def decided(**options):
    """An autoregressive prior whose conditional probabilities are far from even."""
    book, prior = codes_and_prior(AutoregressiveCodes, width=8, depth=2, heads=2, **options)
    torch.nn.init.normal_(prior.network.head.weight)
    torch.nn.init.normal_(prior.network.embedding.weight)
    torch.nn.init.normal_(prior.network.positions)
    return book, prior


@pytest.mark.parametrize(("make", "uneven"), [(uniform, False), (decided, True)])
@pytest.mark.parametrize("code_shape", [(1, 2, 2), (4,), (2, 1, 2)])
def test_priors_over_codes_sum_to_one(make, uneven, code_shape):
    book, prior = make(code_shape=code_shape)
    density = prior(PriorInputs(codes=book))
    masses = every_mass(density, every_latent(book, code_shape))
    assert_close(masses.sum(), torch.tensor(1.0))
    assert (masses.max() > 2 * masses.min()).item() is uneven
    batched = every_latent(book, code_shape)[:6].reshape(2, 3, *density.event_shape)
    assert_close(density.log_prob(batched).exp(), masses[:6].reshape(2, 3))


@pytest.mark.parametrize("make", [uniform, decided])
def test_samples_of_priors_follow_their_mass_function(make):
    book, prior = make(num_codes=2)
    density = prior(PriorInputs(codes=book))
    expected = every_mass(density, every_latent(book, (1, 2, 2))).detach()
    samples = density.sample((20_000,))
    assert samples.shape == (20_000, *density.event_shape)
    assert chi_square(book, samples, expected) < 37.7  # one in a thousand of 15 degrees
    assert density.sample((2, 3)).shape == (2, 3, *density.event_shape)
    assert density.sample().shape == density.event_shape


@pytest.mark.parametrize("make", [uniform, decided])
def test_a_temperature_sharpens_each_code_given_those_before(make):
    book, prior = make(code_shape=(2,))
    density = prior(PriorInputs(codes=book))
    masses = every_mass(density, every_latent(book, (2,))).reshape(3, 3)
    first, second = masses.sum(1), masses / masses.sum(1, keepdim=True)
    for temperature in (0.5, 2.0):
        sharp_first, sharp_second = first ** (1 / temperature), second ** (1 / temperature)
        expected = (sharp_first / sharp_first.sum())[:, None] * sharp_second / sharp_second.sum(1, keepdim=True)
        cooler = every_mass(with_temperature(density, temperature), every_latent(book, (2,)))
        assert_close(cooler.reshape(3, 3), expected)
    if make is decided:
        likeliest = first.argmax() * 3 + second[first.argmax()].argmax()
        coldest = with_temperature(density, 0.0).sample((5,))
        assert_close(coldest, every_latent(book, (2,))[likeliest].expand(5, -1))


# --- options, usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearestCode(6, code_dim=4), "choose a divisor of 6"),
        (lambda: NearestCode(6, code_dim=0), "choose a divisor of 6"),
        (lambda: NearestCode(6, num_codes=1), "model.posterior.num_codes is at least 2; found 1"),
        (lambda: NearestCode(6, decay=1.0), "model.posterior.decay"),
        (lambda: NearestCode(6, restart_below=-0.1), "model.posterior.restart_below"),
        (lambda: RelaxedCategorical(2, num_categories=1), "model.posterior.num_categories is at least 2"),
        (lambda: RelaxedCategorical(2, temperature=0.0), "model.posterior.temperature is above 0"),
        (lambda: codes_and_prior(AutoregressiveCodes, width=6, heads=4), "model.prior.width is a multiple"),
        (lambda: codes_and_prior(AutoregressiveCodes, depth=0), "depth=0"),
        (lambda: Commitment(TrainingSpec(IMAGE, (), 1), weight=-1.0), "commitment.weight is a number of at least 0"),
        (lambda: Codebook(2, 3, num_codes=4).indices(torch.zeros(2, 5, 6)), "codes of 6 features"),
        (lambda: UniformCodes(LatentSpec("vector", (2,), IMAGE)), "model/prior=standard_normal"),
        (codes_and_prior(UniformCodes)[1], "needs the posterior's codes"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_codebook_larger_than_the_training_set_is_told():
    latents = (latent_spec(NearestCode(4, num_codes=512), (), IMAGE), latent_spec(DiagonalGaussian(2), (), IMAGE))
    assert codebook_size_warning(latents, 512) is None
    assert codebook_size_warning(latents[1:], 0) is None
    warning = codebook_size_warning(latents, 511)
    assert "512 codes" in warning and "511 images" in warning and "model.posterior.num_codes=64" in warning


def test_usage_of_codes_over_a_split():
    usage = CodeUsage(num_codes=8)
    usage.update(torch.tensor([[[0, 0], [3, 3]]]))
    usage.update(torch.tensor([[3, 3], [0, 0], [5, 5]]))
    found = usage.compute()
    assert found["codes_used"].item() == pytest.approx(3 / 8)
    shares = (0.4, 0.4, 0.2)
    assert found["code_perplexity"].item() == pytest.approx(math.exp(-sum(s * math.log(s) for s in shares)))

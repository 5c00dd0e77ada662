"""Priors fitted to the latents of a trained model: exact where the answer is known, and through the command."""

import json
import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import Command
from helpers.refusals import refused
from omegaconf import OmegaConf
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from vae_lab.core import NO_INPUTS, ImageSpec, LatentSpec, Posterior, Prior
from vae_lab.data.batches import Batch
from vae_lab.fit_prior import fit_to_run
from vae_lab.inference import load
from vae_lab.likelihoods import LocationScale
from vae_lab.metrics.diagnostics import Diagnostics
from vae_lab.metrics.elbo_sums import ElboSums
from vae_lab.metrics.evaluator import SplitEvaluator
from vae_lab.models.vae import VAE
from vae_lab.objectives.bounds import elbo
from vae_lab.objectives.objective import Objective
from vae_lab.objectives.schedules import Constant
from vae_lab.posteriors import Deterministic, NearestCode, VonMisesFisher
from vae_lab.priors import (
    AutoregressiveCodes,
    ClassGaussian,
    Flat,
    FlowPrior,
    FullGaussian,
    GaussianMixture,
    StandardNormal,
    UniformCodes,
    UniformSphere,
)
from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.runs.stored_config import load_config
from vae_lab.second_stage import DirectFit, GradientFit, SecondStage, StandardizedPrior
from vae_lab.second_stage.fitting import FittingTask, LatentSamples, sample_posteriors
from vae_lab.second_stage.prior_fit import (
    PriorFit,
    elbo_terms,
    mean_importance_bound,
    split_sizes,
    with_prior,
)
from vae_lab.second_stage.stage import build_prior
from vae_lab.second_stage.storage import fingerprint
from vae_lab.utils.errors import RunFailed, UsageError
from vae_lab.utils.signals import Interrupted

IMAGE = ImageSpec(1, 2, 2)
PLANE = LatentSpec("vector", (2,), IMAGE)
N = 20_000


def silent(items, what, total):
    return iter(items)


pytestmark = pytest.mark.usefixtures("one_thread")


def in_batches(x, size=5000):
    """Batches of images without labels."""
    return [(part, None) for part in x.split(size)]


def evaluator_of(model, kl="closed_form"):
    """An evaluator of images that need no preprocessing."""
    as_they_are = SimpleNamespace(evaluate=lambda x: x)
    sums = ElboSums.for_latents(model.latents, sync_on_compute=False)
    return SplitEvaluator(sums, Diagnostics(model), Objective(elbo, Constant(), kl=kl), as_they_are, seed=0)


def evaluated(model, x, kl="closed_form"):
    """ELBO, log_px and KL."""
    batches = [Batch(part, None) for part in x.split(5000)]
    return tuple(elbo_terms(evaluator_of(model, kl), model, "val", batches).values())


class Fixed(Posterior):
    """q(z|x) = N(A x, diag s^2)."""

    kind, num_params, num_features = "vector", 2, 2
    scale = torch.tensor([0.5, 1.2])

    def __init__(self, latent_dim):
        super().__init__()

    def forward(self, params):
        return Independent(Normal(params, self.scale.expand_as(params)), 1)


class LinearEncoder(nn.Sequential):
    def __init__(self, in_shape, out_features):
        super().__init__(nn.Flatten(), nn.Linear(math.prod(in_shape), out_features))


class LinearDecoder(nn.Sequential):
    def __init__(self, in_features, out_shape):
        super().__init__(nn.Linear(in_features, math.prod(out_shape)), nn.Unflatten(1, out_shape))


def model_of(posterior=Fixed, prior=StandardNormal, latent_dim=2):
    torch.manual_seed(0)
    likelihood = partial(LocationScale, density=Normal, scale=0.5)
    model = VAE(IMAGE, latent_dim, LinearEncoder, LinearDecoder, posterior, prior, likelihood)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def linear():
    """A linear model, Gaussian images, and the Gaussian that q(z) then is."""
    model = model_of()
    torch.manual_seed(1)
    root, centre = 0.7 * torch.randn(4, 4), torch.tensor([0.3, -0.4, 0.9, 0.1])
    x = MultivariateNormal(centre, scale_tril=torch.linalg.cholesky(root @ root.T)).sample((N,)).view(N, 1, 2, 2)
    layer = model.encoder[1]
    a, c = layer.weight, layer.bias
    covariance = a @ root @ root.T @ a.T + Fixed.scale.square().diag()
    return model, x, MultivariateNormal(a @ centre + c, covariance)


def latents_of(linear, samples_per_image=1, seed=0):
    model, x, _ = linear
    return sample_posteriors(model, in_batches(x), samples_per_image, seed)


# --- the latents ------------------------------------------------------------------------------------------


def test_each_image_has_noise_of_its_own_and_its_samples_are_held_out_together(linear):
    model, x, _ = linear
    latents, again = latents_of(linear, samples_per_image=3), latents_of(linear, samples_per_image=3)
    assert torch.equal(latents.values, again.values) and len(latents) == 3 * N
    noise = ((latents.values.view(N, 3, 2) - model.encode(x).mean[:, None]) / Fixed.scale).flatten(0, 1)
    assert len(noise.unique(dim=0)) == 3 * N  # batches too draw their own
    assert_close(noise.mean(0), torch.zeros(2), rtol=0, atol=0.03)
    assert_close(torch.cov(noise.T), torch.eye(2), rtol=0, atol=0.04)
    rest, held_out = latents.split_held_out(3)
    assert (len(rest), len(held_out)) == (3 * N * 19 // 20, 3 * N // 20)
    assert torch.equal(held_out.values[:3], latents.values[57:60])


# --- fitting ----------------------------------------------------------------------------------------------


def fitted(prior, fitting, latents, held_out=None, seed=0):
    fitting(FittingTask(prior, latents, held_out or latents, seed, silent))
    return prior.eval().requires_grad_(False)


def test_a_gaussian_recovers_the_aggregate_posterior_of_a_linear_model(linear):
    *_, exact = linear
    found = fitted(FullGaussian(PLANE), DirectFit(), latents_of(linear))()
    assert_close(found.mean, exact.mean, rtol=0, atol=0.03)
    assert_close(found.covariance_matrix, exact.covariance_matrix, rtol=0.03, atol=0.02)


@pytest.mark.parametrize("kl", ["closed_form", "monte_carlo"])
def test_the_rate_falls_by_the_divergence_of_the_aggregate_posterior(linear, kl, monkeypatch):
    """E[KL(q(z|x), p)] = I(x; z) + KL(q(z), p): with p = q(z) the last term is gone."""
    # Processes that trained beside this one have ended: to gather their sums would be to wait for ever.
    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    model, x, exact = linear
    prior = fitted(FullGaussian(PLANE), DirectFit(), latents_of(linear))
    elbo_before, log_px_before, kl_before = evaluated(model, x, kl)
    with with_prior(model, prior):
        elbo_after, log_px_after, kl_after = evaluated(model, x, kl)
    assert isinstance(model.prior, StandardNormal)  # put back
    gain = float(kl_divergence(exact, MultivariateNormal(torch.zeros(2), torch.eye(2))))
    assert gain > 0.3
    assert kl_before - kl_after == pytest.approx(gain, abs=0.02)
    assert elbo_after - elbo_before == pytest.approx(kl_before - kl_after, abs=1e-4)
    assert log_px_after == log_px_before  # at the same z


class Raised(StandardNormal):
    """e times N(0, I): no density, but known to differ by one nat at every z."""

    def forward(self, given=NO_INPUTS):
        normal = super().forward(given)
        log_prob, normal.log_prob = normal.log_prob, lambda z: log_prob(z) + 1
        return normal


def bound_of(model, x, num_samples, seed=0):
    return mean_importance_bound(model, in_batches(x, 100), num_samples, seed, silent)


@pytest.mark.parametrize("num_samples", [1, 5])
def test_the_importance_bound_is_compared_at_the_same_latents(linear, num_samples):
    model, x = linear[0], linear[1][:130]
    with with_prior(model, Raised(PLANE)):
        raised = bound_of(model, x, num_samples)
    plain = bound_of(model, x, num_samples)
    assert raised - plain == pytest.approx(1.0, abs=1e-5)
    assert plain != bound_of(model, x, num_samples, seed=1)


def test_there_is_no_bound_of_a_flat_prior_or_of_a_posterior_without_a_density(linear):
    x = linear[1][:50]
    flat = model_of(prior=Flat)
    for model in (flat, model_of(posterior=Deterministic)):
        value, log_px, kl = evaluated(model, x)
        assert value is kl is None and math.isfinite(log_px)
        assert bound_of(model, x, 2) is None
    with with_prior(flat, FullGaussian(PLANE)):
        assert bound_of(flat, x, 2) < 0 > evaluated(flat, x)[0]


def flow(seed=0):
    """A flow that is not the identity, behind a map that is not either."""
    torch.manual_seed(seed)
    prior = StandardizedPrior(PLANE, partial(FlowPrior, num_flows=2, hidden=(8,)))
    with torch.no_grad():
        for network in prior.prior.networks:
            network[-1].weight.normal_(std=0.3)
    prior.adapt(torch.randn(500, 2) * torch.tensor([3.0, 0.2]) + torch.tensor([-5.0, 1.0]))
    return prior.requires_grad_(False)


def test_the_density_of_a_standardised_flow_integrates_to_one():
    prior = flow()
    torch.manual_seed(0)
    drawn = prior().sample((5000,))
    low, high = drawn.min(0).values - 3 * prior.scale, drawn.max(0).values + 3 * prior.scale
    axes = [torch.linspace(*ends, 600) for ends in zip(low.tolist(), high.tolist(), strict=True)]
    z = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 2)
    cell = float(((high - low) / 599).prod())
    assert float(prior().log_prob(z).double().exp().sum()) * cell == pytest.approx(1.0, abs=1e-3)


def bent(count=4000, seed=0):
    """Latents on a parabola, as no Gaussian has them."""
    torch.manual_seed(seed)
    u = torch.randn(count, 2)
    return LatentSamples(torch.stack((10 + 4 * u[:, 0], 3 * u[:, 0].square() + 0.5 * u[:, 1]), 1))


def test_a_flow_fitted_by_gradient_beats_the_best_gaussian_and_is_the_same_again():
    latents, held_out = bent(), bent(1000, seed=1)
    gaussian = MultivariateNormal(latents.values.mean(0), torch.cov(latents.values.T))
    fitting = GradientFit(epochs=3, batch_size=200, lr=3e-2)
    task = partial(FittingTask, latents=latents, held_out=held_out, track=silent)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        prior = StandardizedPrior(PLANE, partial(FlowPrior, num_flows=4, hidden=(16,)))
        fitting(task(prior, seed=seed))
        found.append(prior)
    score = task(found[0], seed=0).mean_log_prob(held_out)
    assert score > float(gaussian.log_prob(held_out.values).mean()) + 0.5
    first, again, other = (torch.cat([p.flatten() for p in prior.parameters()]) for prior in found)
    assert torch.equal(first, again) and not torch.equal(first, other)


class Somewhere(Prior):
    """N(where, I), or of a scale that breaks as soon as `where` moves."""

    def __init__(self, latent, breaks=False):
        super().__init__()
        self.where, self.breaks = nn.Parameter(torch.zeros(2)), breaks

    def forward(self, given=NO_INPUTS):
        scale = 1 + (-self.where.abs()).sqrt() if self.breaks else torch.ones(2)
        return Independent(Normal(self.where, scale, validate_args=False), 1, validate_args=False)


@pytest.mark.parametrize(("side", "end"), [(-3.0, 0.0), (3.0, 3.0)])
def test_what_is_kept_is_what_was_best_on_latents_held_out(side, end):
    """Fitted to latents on one side of the start; on the other side, each step makes it worse."""
    torch.manual_seed(0)
    latents, held_out = LatentSamples(torch.randn(500, 2) + side), LatentSamples(torch.randn(500, 2) + 3)
    prior = fitted(Somewhere(PLANE), GradientFit(epochs=20, batch_size=50, lr=0.1), latents, held_out)
    assert_close(prior.where, torch.full((2,), end), rtol=0, atol=0.15 if end else 0.0)


def test_autoregressive_codes_learn_what_the_codes_have_in_common():
    torch.manual_seed(0)
    posterior = NearestCode(6, num_codes=4, code_dim=2)  # three codes in a row
    first = torch.randint(4, (2000, 1))
    latents = LatentSamples(torch.cat((first, first, (first + 1) % 4), 1), posterior.codes)
    prior = AutoregressiveCodes(LatentSpec("codes", (6,), IMAGE, 4, (3,)), width=16, depth=1, heads=2)
    fitted(prior, GradientFit(epochs=4, batch_size=100, lr=2e-2, clip_norm=1.0), latents)
    task = FittingTask(prior, latents, latents, 0, silent)
    assert task.mean_log_prob(latents) == pytest.approx(-math.log(4), abs=0.1)


def test_a_density_that_is_lost_says_what_to_try():
    prior, fitting = Somewhere(PLANE, breaks=True), GradientFit(epochs=2, batch_size=10, lr=0.1)
    with pytest.raises(RunFailed, match=r"(?s)became nan in epoch 1.*second_stage\.fitting\.lr \(it is 0\.1\)"):
        fitted(prior, fitting, LatentSamples(torch.randn(20, 2)))


@pytest.mark.parametrize(
    ("prior", "fitting", "words"),
    [
        (FlowPrior, DirectFit(), "FlowPrior has no fit method"),
        (StandardNormal, GradientFit(1, 10, 0.1), "StandardNormal has no parameters to fit"),
        (GaussianMixture, DirectFit(), r"^second_stage\.prior\.num_components=50: .* found 20"),
    ],
)
def test_a_prior_and_a_way_to_fit_it_have_to_go_together(prior, fitting, words):
    with pytest.raises(UsageError, match=words):
        fitted(prior(PLANE), fitting, LatentSamples(torch.randn(20, 2)))


STAGE = partial(SecondStage, name="x", prior=FullGaussian, fitting=DirectFit())


ON_THE_PLANE, ON_A_LINE = model_of, partial(model_of, Deterministic, latent_dim=1)
CODES = partial(model_of, partial(NearestCode, num_codes=5), UniformCodes)
ON_A_SPHERE = partial(model_of, VonMisesFisher, UniformSphere)
LABELLED = LatentSpec("vector", (2,), ImageSpec(1, 2, 2, num_classes=3))


@pytest.mark.parametrize(
    ("prior", "model", "words"),
    [
        (FullGaussian, CODES, r"(?s)FullGaussian .* vectors.* NearestCode are codes.*=autoregressive_codes"),
        (AutoregressiveCodes, ON_THE_PLANE, r"second_stage\.prior: AutoregressiveCodes is a distribution over codes"),
        (GaussianMixture, ON_A_SPHERE, r"(?s)vectors.* are points on a sphere\.\nNo second stage is available"),
        (partial(StandardizedPrior, prior=FlowPrior), ON_A_LINE, r"^second_stage\.prior: .* 2 dimensions; found 1"),
        (lambda _: ClassGaussian(LABELLED), ON_THE_PLANE, r"(?s)ClassGaussian .* labels.*gaussian, mixture or flow"),
    ],
)
def test_a_prior_of_another_space_or_of_more_than_latents_is_refused(prior, model, words):
    with pytest.raises(UsageError, match=words):
        build_prior(STAGE(prior=prior), model(), 0)


def test_a_fingerprint_tells_names_shapes_types_and_values():
    weights = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1), "a": torch.arange(8.0)[:4]}
    others = [{**weights, "a": torch.arange(4.0).view(2, 2)}, {**weights, "a": torch.arange(4.0).double()},
              {**weights, "b": torch.tensor(2)}, {"c": weights["a"], "b": weights["b"]}]  # fmt: skip
    assert fingerprint(weights) == fingerprint(same)
    assert len({fingerprint(other) for other in [weights, *others]}) == 5


# --- the command ------------------------------------------------------------------------------------------

TINY = ("model.latent_dim=2", "model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "trainer.max_epochs=2",
        "trainer.num_threads=1", "callbacks.images=null", "callbacks.baseline=null", "logger=null")  # fmt: skip
FEW = ("second_stage.num_images=20", "second_stage.num_samples=4")
GAUSSIAN = OmegaConf.create({"_target_": "vae_lab.second_stage.SecondStage", "name": "x", "num_images": 20,
                             "prior": {"_target_": "vae_lab.priors.FullGaussian", "_partial_": True},
                             "fitting": {"_target_": "vae_lab.second_stage.DirectFit"}})  # fmt: skip


@pytest.fixture(scope="module")
def trained(warm, tmp_path_factory):
    """A finished run of the whole digits, not yet fitted; do not write into it."""
    done = Command(warm, tmp_path_factory.mktemp("trained"))(*TINY)
    assert done.code == 0, done.stderr
    return done.run


@pytest.fixture(scope="module")
def fitted_run(warm, trained, tmp_path_factory):
    """The same with a Gaussian fitted to it; do not write into it."""
    folder = tmp_path_factory.mktemp("fitted")
    run = shutil.copytree(trained, folder / "run")
    done = Command(warm, folder)(str(run), "second_stage=gaussian", *FEW, module="vae_lab.fit_prior")
    assert done.code == 0, done.stderr
    return run, done


@pytest.fixture
def own_run(fitted_run, tmp_path):
    return Path(shutil.copytree(fitted_run[0], tmp_path / "run"))


def test_images_and_labels_are_those_of_the_run(trained):
    config = load_config(trained)
    config.trainer.limit_test_batches, config.data.eval_batch_size = 0.5, 64  # of three batches
    fit = PriorFit(load_checkpoint(trained / "checkpoints/best.ckpt"), config, GAUSSIAN, torch.device("cpu"), 0, silent)
    assert fit.sizes == {"train": 1437, "val": 180, "test": 64}
    assert split_sizes(config, fit.data, steps=1)["train"] == 512
    assert split_sizes(config, fit.data, steps=10)["train"] == 640
    config.trainer.limit_test_batches = 2
    assert split_sizes(config, fit.data, steps=1)["test"] == 128
    expected = fit.data.example_images("test", 7)
    for conditional in (True, False):
        fit.model.conditional = conditional
        ((x, y),) = fit.images("test", 7)
        assert torch.equal(x, expected[0])
        assert torch.equal(y, expected[1]) if conditional else y is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("run=nowhere", ["Not a run directory: nowhere"]),
        ("device=auto", ["run: has no value"]),
        ("run=RUN second_stage=flwo", ["second_stage=flwo", "did you mean second_stage=flow"]),
        ("run=RUN second_stage.prior.num_component=3", ["did you mean second_stage.prior.num_components?"]),
        ("run=RUN second_stage=flow second_stage.fitting.lr=0", ["second_stage.fitting.lr is above 0"]),
        ("run=RUN device=gpu", ["device=gpu: no such device"]),
        ("run=RUN second_stage.name=../up", ["only letters, digits"]),
    ],
)
def test_a_wrong_request_is_refused(command, trained, argv, words):
    refused(command(*argv.replace("RUN", str(trained)).split(), module="vae_lab.fit_prior"), *words)
    assert not (trained / "prior").exists()


def test_the_command_leaves_a_prior_numbers_and_a_picture(fitted_run, trained):
    run, done = fitted_run
    scores = json.loads((run / "prior/scores.json").read_text())
    assert scores["name"] == "gaussian" and scores["fitted_to"]["checkpoint"] == "best.ckpt"
    before, after = scores["metrics"]["trained"], scores["metrics"]["fitted"]
    assert list(before) == list(after) == ["val/elbo", "val/log_px", "val/kl", "test/elbo", "test/log_px", "test/kl",
                                           "test/iw_elbo_4"]  # fmt: skip
    own = json.loads((trained / "summary.json").read_text())["metrics"]
    assert all(before[name] == own[name] for name in before if not name.startswith("test/iw"))
    assert all(after[name] > before[name] for name in ("val/elbo", "test/elbo", "test/iw_elbo_4"))
    assert all(f"{value:.2f}" in done.stdout for value in [*before.values(), *after.values()])
    assert scores["protocol"]["test/iw_elbo_4"] == {"images": 20}
    assert scores["protocol"]["images"] == {"train": 1437, "val": 180, "test": 180}
    assert (run / "images/prior_samples=gaussian.png").read_bytes().startswith(b"\x89PNG")
    assert set(load_checkpoint(run / "prior/weights.ckpt")) == {"prior", "checkpoint", "step", "fingerprint"}
    assert not list(run.glob(".prior*"))


def test_a_loaded_run_samples_and_scores_with_the_fitted_prior(fitted_run):
    run, _ = fitted_run
    fitted, trained = load(run), load(run, prior="trained")
    assert (fitted.fitted_prior, trained.fitted_prior) == ("gaussian", None)
    assert "'fitted' or 'trained'" in refusal(run, prior="best")
    assert isinstance(trained.model.prior, StandardNormal) and isinstance(fitted.model.prior, FullGaussian)
    assert not any(p.requires_grad for p in fitted.model.parameters())
    covariance = fitted.model.prior().covariance_matrix
    assert (covariance - torch.eye(2)).abs().max() > 0.1  # or nothing would be shown
    torch.manual_seed(0)
    images = fitted.sample(2000)
    torch.manual_seed(0)
    assert_close(images, fitted.decode(fitted.model.prior().sample((2000,))))
    x = torch.rand(3, *fitted.image.shape).round()
    torch.manual_seed(1)
    log_px, q = fitted.log_likelihood(x, num_samples=1), fitted.encode(x)
    torch.manual_seed(1)
    z = q.sample((1,))[0]
    log_joint = fitted.model.decode(z).log_prob(x) + fitted.model.prior().log_prob(z)
    assert_close(log_px, log_joint - q.log_prob(z), rtol=1e-4, atol=1e-3)


def test_a_second_fit_replaces_the_first_if_it_is_told_to(command, own_run):
    before = (own_run / "prior/weights.ckpt").read_bytes()
    argv = (f"run={own_run}", "second_stage=flow", "second_stage.fitting.epochs=1", *FEW)
    refused(command(*argv, module="vae_lab.fit_prior"), "prior: a fitted prior already exists", "overwrite=true")
    assert (own_run / "prior/weights.ckpt").read_bytes() == before
    done = command(*argv, "overwrite=true", module="vae_lab.fit_prior")
    assert done.code == 0, done.stderr
    lab = load(own_run)
    assert lab.fitted_prior == "flow" and isinstance(lab.model.prior, StandardizedPrior)
    assert lab.sample(3).shape == (3, *lab.image.shape)
    assert not list(own_run.glob(".prior*"))


# --- what is read back ------------------------------------------------------------------------------------


def refusal(run, **options):
    with pytest.raises(UsageError) as caught:
        load(run, **options)
    return str(caught.value)


def test_the_config_of_a_prior_builds_no_other_code(own_run, tmp_path):
    file = own_run / "prior/config.yaml"
    config = OmegaConf.load(file)
    config.second_stage.prior = {"_target_": "os.system", "command": f"touch {tmp_path / 'pwned'}"}
    OmegaConf.save(config, file)
    assert "second_stage.prior._target_" in refusal(own_run) and not (tmp_path / "pwned").exists()


def test_a_prior_of_other_weights_is_not_used(own_run):
    """The run was gone on with, say, and its best weights are others now."""
    best = own_run / "checkpoints/best.ckpt"
    saved = load_checkpoint(best)
    saved["state_dict"]["model.encoder.1.bias"][0] += 1e-3
    torch.save(saved, best)
    text = refusal(own_run)
    assert "fitted to the weights of best.ckpt" in text and "overwrite=true" in text and 'prior="trained"' in text
    assert load(own_run, prior="trained").fitted_prior is None


@pytest.mark.parametrize("fault", ["cut", "config", "shape"])
def test_a_damaged_prior_is_named(own_run, fault):
    weights, config = own_run / "prior/weights.ckpt", own_run / "prior/config.yaml"
    {
        "cut": lambda: weights.write_bytes(weights.read_bytes()[:-100]),
        "config": lambda: config.write_text("second_stage: ["),
        "shape": lambda: config.write_text(config.read_text().replace("FullGaussian", "GaussianMixture")),
    }[fault]()
    text = refusal(own_run)
    assert str(own_run / "prior") in text and "overwrite=true" in text
    assert load(own_run, prior="trained").fitted_prior is None


def test_a_pause_that_raises_leaves_the_run_as_it_was(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = sorted(run.rglob("*"))
    config = load_config(run)
    calls = []
    undisturbed = Path(shutil.copytree(run, tmp_path / "other"))
    fit_to_run(undisturbed, config, GAUSSIAN, torch.device("cpu"), lambda: calls.append(0))
    assert (undisturbed / "prior/weights.ckpt").is_file() and len(calls) > 5

    def pause():
        if next(left) == 0:
            raise Interrupted(2)

    for stop in (1, 3, len(calls)):
        left = iter(range(stop - 1, -1, -1))
        with pytest.raises(Interrupted):
            fit_to_run(run, config, GAUSSIAN, torch.device("cpu"), pause)
        assert sorted(run.rglob("*")) == before


# --- in training ------------------------------------------------------------------------------------------


def test_training_fits_the_prior_that_its_config_names(command, fitted_run):
    done = command(*TINY, "second_stage=gaussian", *FEW)
    assert done.code == 0, done.stderr
    assert done.summary["status"] == "completed"
    scores, expected = (json.loads((run / "prior/scores.json").read_text()) for run in (done.run, fitted_run[0]))
    assert scores["metrics"] == expected["metrics"]  # as the command finds them
    assert load(done.run).fitted_prior == "gaussian"
    again = command(f"resume={done.run}", "trainer.max_epochs=3")
    assert again.code == 0, again.stderr
    saved = load_checkpoint(done.run / "prior/weights.ckpt")
    assert saved["step"] == load_checkpoint(done.run / "checkpoints/best.ckpt")["global_step"]
    assert load(done.run).fitted_prior == "gaussian"  # of the weights that are there now

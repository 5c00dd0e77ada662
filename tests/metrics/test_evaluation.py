"""The parts of an evaluation on a linear Gaussian model, where every bound on log p(x) is known."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.linear import SIDE, Images, linear_model
from helpers.steps import SMALL_MLP, model_of
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.nn.functional import conv2d, pad
from torch.testing import assert_close

from vae_lab.core import ImageSpec
from vae_lab.metrics.baseline import baseline_rows
from vae_lab.metrics.cost import auroc, cost_rows
from vae_lab.metrics.features import Features
from vae_lab.metrics.importance import bounds_by_number
from vae_lab.metrics.likelihood import (
    aggregate_log_probs,
    annealed_rows,
    bidirectional_rows,
    elbo_rows,
    images_of_chains,
    importance_rows,
    kl_parts_rows,
)
from vae_lab.metrics.quality import quality_rows, samples
from vae_lab.metrics.representation import disentanglement_rows, reconstruction_rows, representation_rows
from vae_lab.metrics.subject import BLOCK, Subject, mean_row


def linear_subject(factor=1.0, count=250, **options):
    model, _, _ = linear_model(factor)
    torch.manual_seed(1)
    w, b = model.posterior.w, model.posterior.b
    x = (b + torch.randn(count, 2) @ w.T + 0.4 * torch.randn(count, SIDE * SIDE)).view(-1, 1, SIDE, SIDE)
    evidence = MultivariateNormal(b, w @ w.T + 0.16 * torch.eye(SIDE * SIDE)).log_prob(x.flatten(1))
    return Subject(model.eval().requires_grad_(False), Images(x, **options), torch.device("cpu")), evidence


def rows(found):
    return {row.name: row for row in found}


def test_with_the_exact_posterior_the_elbo_is_log_px_and_so_is_every_bound():
    subject, evidence = linear_subject()
    found = rows([*importance_rows(subject, 12)])
    assert list(found) == ["iw_elbo_1", "iw_elbo_10", "iw_elbo_12"]
    for name, row in found.items():
        assert_close(subject.per_image[name].float(), evidence, rtol=0, atol=1e-3)
        assert row.value == pytest.approx(float(evidence.mean()), abs=1e-4)
        assert row.stderr == pytest.approx(float(evidence.std()) / math.sqrt(250), abs=1e-4)


def test_elbo_is_rate_and_distortion():
    subject, evidence = linear_subject(3.0)
    found = rows(elbo_rows(subject))
    assert found["elbo"].value == pytest.approx(-found["rate"].value - found["distortion"].value, abs=1e-4)
    assert found["elbo"].value < float(evidence.mean())
    assert "bits_per_dim" not in found  # a density


def test_a_wrong_posterior_gives_bounds_that_rise_to_log_px_and_annealing_comes_close():
    subject, evidence = linear_subject(6.0, count=60)
    values = [row.value for row in importance_rows(subject, 1000)]
    exact = float(evidence.mean())
    assert values == sorted(values) and values[0] < exact - 0.1 and values[-1] == pytest.approx(exact, abs=0.05)
    (annealed,) = annealed_rows(subject, 60, num_images=60)
    assert annealed.value == pytest.approx(exact, abs=0.05)


def test_bidirectional_monte_carlo_brackets_the_truth():
    subject, _ = linear_subject(6.0)
    lower, upper, gap = bidirectional_rows(subject, 40, num_images=50)
    assert lower.value < upper.value + 0.02 and gap.value == pytest.approx(upper.value - lower.value, abs=1e-5)
    assert gap.value < 0.3


def test_per_image_results_do_not_depend_on_the_size_of_batches():
    ones = [linear_subject(3.0, count=BLOCK + 30, batch_size=size)[0] for size in (7, 64, 500)]
    for subject in ones:
        list(elbo_rows(subject)), list(importance_rows(subject, 11))
    for name in ("elbo", "iw_elbo_10"):
        for other in ones[1:]:
            assert torch.equal(ones[0].per_image[name], other.per_image[name])


def test_bounds_of_several_k_from_one_set_of_weights():
    weights = torch.tensor([[0.0], [math.log(3.0)], [math.log(5.0)]])
    found = bounds_by_number(weights, [1, 2, 3])
    assert_close(found[1], torch.tensor([math.log(15) / 3]).double())
    assert_close(found[2], torch.tensor([math.log(2)]).double())  # the third weight makes no pair
    assert_close(found[3], torch.tensor([math.log(3)]).double())
    with pytest.raises(ValueError, match="K = 4: expected 1 to 3"):
        bounds_by_number(weights, [4])


def test_the_parts_of_the_kl_against_mixtures_of_torch():
    torch.manual_seed(0)
    means, scales = torch.randn(6, 2).double(), torch.rand(6, 2).double() + 0.2
    z = means[:4] + scales[:4] * torch.randn(4, 2)
    joint, marginals, own = aggregate_log_probs(z, means, scales, chunk=3)
    uniform = Categorical(torch.ones(6))
    exact = MixtureSameFamily(uniform, Independent(Normal(means, scales), 1)).log_prob(z)
    each = [MixtureSameFamily(uniform, Normal(means[:, d], scales[:, d])).log_prob(z[:, d]) for d in range(2)]
    assert_close(joint, exact)
    assert_close(marginals, sum(each))
    assert_close(own, Independent(Normal(means[:4], scales[:4]), 1).log_prob(z))


def test_standard_errors_cover_the_truth():
    """95% intervals of the mean of 100 numbers hold it in about 95% of 1000 repeats."""
    values = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    found = [mean_row("x", each) for each in values]
    covered = np.mean([abs(row.value) < 1.984 * row.stderr for row in found])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_what_cannot_be_measured_says_why():
    subject, _ = linear_subject(count=12)
    assert {row.reason for row in kl_parts_rows(subject)} == {"needs one layer with a diagonal Gaussian posterior"}
    found = rows([*representation_rows(subject), *disentanglement_rows(subject, None, [])])
    assert found["active_units"].value is not None
    assert found["knn_accuracy"].value is None and found["knn_accuracy"].reason == "the data have no labels"
    assert found["mig"].reason == "the data have no known factors"
    with pytest.raises(ValueError, match="at least 1 sample of z, found 0"):
        list(importance_rows(subject, 0))


def test_factors_that_are_in_the_image_are_found_by_a_linear_code():
    model, _, _ = linear_model(1.0)
    factors = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2).repeat(4, 0)
    w, _ = torch.linalg.qr(model.posterior.w)
    model.posterior.w = w
    z = torch.tensor(factors).float() - 3.5
    x = (model.posterior.b + z @ w.T).view(-1, 1, SIDE, SIDE)
    subject = Subject(model.eval(), Images(x), torch.device("cpu"))
    constant = np.concatenate([factors, 0 * factors[:, :1]], 1)
    found = rows(disentanglement_rows(subject, constant, (False, False, True)))
    exact = [name for name, row in found.items() if row.value > 0.95 and row.protocol["factors"] == 2]
    assert exact == [*found][:-1], found
    assert 0.3 < found["mig_sampled"].value < 0.9  # q(z|x) is wide
    model.posterior.factor = 1e4
    noise = rows(disentanglement_rows(subject, constant, (False, False, True)))
    assert noise["mig"].value > 0.95 and noise["mig_sampled"].value < 0.1
    one = disentanglement_rows(subject, 0 * factors, (False, False))
    assert {row.reason for row in one} == {"fewer than two factors vary"}


def test_reconstructions_and_baseline_by_hand():
    subject, evidence = linear_subject()
    found = rows([*reconstruction_rows(subject), *baseline_rows(subject), *cost_rows(subject, 0.01)])
    x = subject.data.x
    mean = subject.model.reconstruct(x).mean
    squares = (x - mean).square().flatten(1).mean(1)
    assert found["mse"].value == pytest.approx(float(squares.mean()), rel=1e-5)
    assert found["psnr"].value == pytest.approx(float(-10 * squares.log10().mean()), rel=1e-5)
    assert found["mean_mse"].value == pytest.approx(float((x - x.mean(0)).square().mean()), rel=1e-5)
    assert found["pca_log_likelihood"].value > float(evidence.mean())  # fitted to these images
    assert found["samples_per_second"].protocol["measured"]


def wang(x, y, window):
    """SSIM as in the paper, a Gaussian window at each pixel, borders reflected; (N,)."""
    offsets = torch.arange(window) - window // 2
    bell = torch.exp(-(offsets.double() ** 2) / (2 * (1.5 * window / 11) ** 2))
    kernel = (bell[:, None] * bell / bell.sum() ** 2)[None, None]

    def local(values):
        return conv2d(pad(values.double(), [window // 2] * 4, mode="reflect"), kernel)

    mx, my = local(x), local(y)
    vx, vy, covariance = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
    index = (2 * mx * my + 1e-4) * (2 * covariance + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return index.flatten(1).mean(1)


@pytest.mark.parametrize(("side", "window"), [(28, 11), (8, 7)])
def test_ssim_is_that_of_the_paper(side, window):
    torch.manual_seed(0)
    x, blurred = torch.rand(6, 1, side, side), torch.rand(6, 1, side, side)
    y = (x + blurred) / 2
    model = SimpleNamespace(
        image=ImageSpec(1, side, side), conditional=False, reconstruct=lambda *_: SimpleNamespace(mean=y)
    )
    found = rows(reconstruction_rows(Subject(model, Images(x), torch.device("cpu"))))["ssim"]
    assert found.value == pytest.approx(float(wang(x, y, window).mean()), abs=1e-5)
    assert found.protocol["window"] == f"Gaussian, {window} pixels"


@pytest.mark.parametrize("prior", ["gaussian_mixture", "flow", "standard_normal"])
def test_chains_from_any_prior_agree_with_the_mean_over_many_of_its_samples(prior):
    """A posterior that is no Gaussian, whose chains start at p(z)."""
    model = model_of(*SMALL_MLP, "model/likelihood=bernoulli", "model/posterior=iaf", f"model/prior={prior}")
    subject = Subject(model.eval().requires_grad_(False), Images(torch.rand(6, *model.image.shape).round()),
                      torch.device("cpu"))  # fmt: skip
    (annealed,) = annealed_rows(subject, 40, 8, 3)
    z = model.sample_latents(20_000)
    weights = torch.cat([model.decode(part).log_prob(subject.data.x.unsqueeze(1)) for part in z.split(2000)], 1)
    exact = float((weights.logsumexp(1) - math.log(len(z))).mean())
    assert annealed.value == pytest.approx(exact, abs=0.1)
    assert 0.3 < annealed.protocol["acceptance"] <= 1
    lower, upper, _ = bidirectional_rows(subject, 40, 8, 3, num_images=20)
    assert lower.value - 0.1 < upper.value


def test_chains_of_large_images_take_a_few_at_a_time():
    small, large = (SimpleNamespace(likelihood=SimpleNamespace(num_channels=3), image=ImageSpec(3, side, side))
                    for side in (28, 128))  # fmt: skip
    assert images_of_chains(small, 16) > 40 and images_of_chains(large, 16) == 2


@pytest.mark.parametrize(
    ("labels", "knn"),
    [(torch.zeros(12, dtype=torch.int64), "of one class"), (torch.arange(6) % 2, ""), (None, "no labels")],
)
def test_labels_of_few_images_and_of_one_class(labels, knn):
    subject, _ = linear_subject(count=12 if labels is None else len(labels), labels=labels)
    found = rows(representation_rows(subject))["knn_accuracy"]
    assert knn in found.reason and (found.value is None) == bool(knn)
    assert knn or found.protocol["neighbours"] == 6


def test_the_training_split_is_not_compared_with_itself():
    subject, _ = linear_subject(count=60)
    found = rows(quality_rows(replace(subject, split="train"), Features("pixels", lambda x: x.flatten(1)), 60))
    assert found["memorisation"].reason and found["fid"].value is not None


def test_auroc_is_the_share_of_pairs_in_order():
    assert auroc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])) == pytest.approx(0.75)


def test_the_samples_that_are_shown_are_those_whose_neighbours_are_shown():
    """In the features of the pixels themselves, by hand."""
    subject, _ = linear_subject(count=130)
    list(quality_rows(subject, Features("pixels", lambda x: x.flatten(1)), 130))
    shown, images = subject.nearest
    generated = torch.cat(list(samples(subject, 130)))
    assert_close(shown, generated[:16], rtol=0, atol=0)
    x = subject.data.x
    expected = torch.cdist(shown.flatten(1), x.flatten(1)).argmin(1)
    assert_close(images, x[expected], rtol=0, atol=0)

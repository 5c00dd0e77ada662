"""Likelihood of images under a model: bounds on log p(x), rate and distortion, in nats per image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae_lab.distributions.gaussians import as_diagonal_normal
from vae_lab.metrics.annealed import Path, anneal
from vae_lab.metrics.elbo_sums import bits_per_dim
from vae_lab.metrics.importance import bounds_by_number, images_at_once, log_weights
from vae_lab.metrics.subject import BLOCK, Row, Subject, left_out, mean_row
from vae_lab.models.base import parts_without_density
from vae_lab.models.vae import VAE
from vae_lab.objectives.bounds import bound_terms, elbo, total_kl
from vae_lab.utils.distributed import all_blocks
from vae_lab.utils.rng import FIT, seed_noise

CURVE = (1, 10, 100, 1000, 5000)
MAX_VALUES = 2**22  # in a tensor


def no_bound(subject: Subject) -> str:
    """Why there is no bound on log p(x); empty if there is one."""
    parts = parts_without_density(subject.model)
    return f"{' and '.join(parts)} has no density" if parts else ""


@torch.inference_mode()
def elbo_rows(subject: Subject, num_images: int | None = None) -> Iterator[Row]:
    """`elbo`, `distortion`, `rate` and, of a mass function, `bits_per_dim`, with one sample of z for each image."""
    found = []
    for x, y in subject.blocks(num_images, "ELBO", share=subject.share):
        terms = bound_terms(subject.model(x, 1, subject.labels(y)), x, log_ratio=False)
        found.append(torch.stack((elbo(terms), -terms.log_px.mean(0), total_kl(terms).mean(0))).double().cpu())
    bound, distortion, rate = torch.cat(all_blocks(found), 1)
    protocol = {"samples of z": 1, "unit": "nats per image"}
    if reason := no_bound(subject):
        yield from left_out(reason, "elbo", "rate")
    else:
        subject.per_image["elbo"] = bound
        yield mean_row("elbo", bound, **protocol)
        yield mean_row("rate", rate, **protocol)
    yield mean_row("distortion", distortion, **protocol)
    if subject.model.is_mass_function:
        bits = bound * -bits_per_dim(1.0, subject.model.image.num_dims)
        yield mean_row("bits_per_dim", bits, **(protocol | {"unit": "bits per dimension"}))


def importance_rows(subject: Subject, num_samples: int, num_images: int | None = None) -> Iterator[Row]:
    """`iw_elbo_<K>` for the K of CURVE below num_samples, and for num_samples. ValueError: num_samples below 1."""
    if num_samples < 1:
        raise ValueError(f"evaluation.likelihood.num_samples: at least 1 sample of z, found {num_samples}")
    numbers = [*(k for k in CURVE if k < num_samples), num_samples]
    names = [f"iw_elbo_{k}" for k in numbers]
    if reason := no_bound(subject):
        yield from left_out(reason, *names)
        return
    at_once = images_at_once(subject.model, subject.device)  # not by its memory, on which the noise must not depend
    size = min(10, at_once)
    chunk = at_once // size
    found = []
    for x, y in subject.blocks(num_images, f"importance bound, K = {num_samples:,}", size=size, share=subject.share):
        weights = log_weights(subject.model, x, num_samples, chunk, subject.labels(y))
        found.append(torch.stack([*bounds_by_number(weights, numbers).values()]).cpu())
    for name, k, bound in zip(names, numbers, torch.cat(all_blocks(found), 1), strict=True):
        subject.per_image[name] = bound
        yield mean_row(name, subject.per_image[name], K=k, unit="nats per image")


# --- annealed importance sampling ---------------------------------------------------------------------------


def no_annealing(subject: Subject) -> str:
    """Why chains cannot move in the latent space; empty if they can."""
    model = subject.model
    if not isinstance(model, VAE):
        return f"{type(model).__name__} has {len(model.latents)} stochastic layers; chains move in one"
    if model.latent.kind != "vector":
        return f"HMC needs a latent vector, and the latents are {model.latent.kind}"
    return no_bound(subject)


class Chains:
    """Chains from q(z|x) where that is Gaussian, else from p(z), to p(x, z)."""

    def __init__(self, model: VAE, x: Tensor, y: Tensor | None) -> None:
        with torch.no_grad():
            posterior, prior = model.encode(x, y), model.prior_distribution(y)
        gaussian = as_diagonal_normal(posterior) is not None or isinstance(posterior, MultivariateNormal)
        self.start, self.num_images = posterior if gaussian else prior, len(x)
        self.path = Path(
            self.start.log_prob,
            lambda z: model.prior_distribution(y).log_prob(z) + model.decode(z, y).log_prob(x),
        )

    def sample_start(self, num_chains: int) -> Tensor:
        """Where forward chains start, (C, B, *event)."""
        per_image = len(self.start.batch_shape) > 0  # False for a p(z) without labels
        return self.start.sample(torch.Size((num_chains,) if per_image else (num_chains, self.num_images)))


def images_of_chains(model: VAE, num_chains: int) -> int:
    """Images whose chains fit into memory, with the gradients of the decoder."""
    values = model.likelihood.num_channels * model.image.height * model.image.width
    return max(1, min(BLOCK, MAX_VALUES // (2 * values * num_chains)))


def annealed_rows(
    subject: Subject, num_steps: int, num_chains: int = 16, num_leapfrog: int = 10, num_images: int | None = 100
) -> Iterator[Row]:
    """`ais`: log p(x) by annealed importance sampling, in expectation a lower bound; and `ais_acceptance`."""
    if reason := no_annealing(subject):
        yield from left_out(reason, "ais")
        return
    model: Any = subject.model
    size, found = images_of_chains(model, num_chains), []
    for x, y in subject.blocks(num_images, "annealed importance sampling", size=size, share=subject.share):
        chains = Chains(model, x, subject.labels(y))
        end = anneal(chains.path, chains.sample_start(num_chains), num_steps, num_leapfrog, track=subject.track)
        found.append((end.log_px.cpu(), end.acceptance * len(x)))
    bounds, acceptance = zip(*all_blocks(found), strict=True)
    subject.per_image["ais"] = torch.cat(bounds)
    protocol = {"steps": num_steps, "chains": num_chains, "leapfrog steps": num_leapfrog}
    mean = sum(acceptance) / len(subject.per_image["ais"])
    yield mean_row("ais", subject.per_image["ais"], **protocol, acceptance=mean)


def bidirectional_rows(
    subject: Subject, num_steps: int, num_chains: int = 16, num_leapfrog: int = 10, num_images: int = BLOCK
) -> Iterator[Row]:
    """`bdmc_lower`, `bdmc_upper`, `bdmc_gap` on images simulated from the model: how far `ais` may be off.

    Grosse et al. 2015, arXiv:1511.02543.
    """
    names = ("bdmc_lower", "bdmc_upper", "bdmc_gap")
    reason = no_annealing(subject) or ("the model needs labels" if subject.model.conditional else "")
    if reason:
        yield from left_out(reason, *names)
        return
    model: Any = subject.model
    seed_noise(subject.device, subject.seed, FIT, *b"simulated")
    with torch.no_grad():
        try:
            z = model.sample_latents(num_images)
        except NotImplementedError as error:
            yield from left_out(str(error), *names)
            return
        x = model.decode(z).sample()
    bounds = []
    size = images_of_chains(model, num_chains)
    for truth, images in zip(z.split(size), x.split(size), strict=True):
        chains = Chains(model, images, None)
        start, end = chains.sample_start(num_chains), truth.expand(num_chains, *truth.shape)
        forward = anneal(chains.path, start, num_steps, num_leapfrog, track=subject.track)
        backward = anneal(chains.path, end, num_steps, num_leapfrog, backwards=True, track=subject.track)
        bounds.append(torch.stack((forward.log_px, backward.upper_bound)))
    lower, upper = torch.cat(bounds, 1)
    protocol = {"steps": num_steps, "chains": num_chains, "leapfrog steps": num_leapfrog, "data": "simulated"}
    for name, values in zip(names, (lower, upper, upper - lower), strict=True):
        yield mean_row(name, values.cpu(), **protocol)


# --- the parts of the KL -------------------------------------------------------------------------------------


@torch.inference_mode()
def kl_parts_rows(subject: Subject, num_images: int = 10_000, num_draws: int = 1000) -> Iterator[Row]:
    """`mutual_information`, `total_correlation`, `dimension_kl`: their sum is the KL. q(z) is the mean of q(z|x) over
    the images used, so that the mutual information is at most log of their number.

    dimension_kl: of the product of the marginals of q(z) and p(z). Chen et al. 2018, arXiv:1802.04942, equation 2.
    """
    names = ("mutual_information", "total_correlation", "dimension_kl")
    model: Any = subject.model
    posteriors, draws, ratios = [], [], []
    if isinstance(model, VAE) and not no_bound(subject):
        for x, y in subject.blocks(num_images, "parts of the KL"):
            posterior = model.encode(x, subject.labels(y))
            normal = as_diagonal_normal(posterior)
            if normal is None:
                break
            z = posterior.sample()
            posteriors.append((normal.loc.flatten(1).double(), normal.scale.flatten(1).double()))
            draws.append(z.flatten(1).double())
            ratios.append(model.prior_distribution(subject.labels(y)).log_prob(z).double())
    if not posteriors:
        yield from left_out("needs one layer with a diagonal Gaussian posterior", *names)
        return
    means, scales = (torch.cat(each) for each in zip(*posteriors, strict=True))
    z, log_pz = torch.cat(draws)[:num_draws], torch.cat(ratios)[:num_draws]
    joint, marginals, own = aggregate_log_probs(z, means, scales)
    protocol = {"q(z) over images": len(means), "at most": math.log(len(means)), "unit": "nats per image"}
    for name, values in zip(names, (own - joint, joint - marginals, marginals - log_pz), strict=True):
        yield mean_row(name, values, **protocol)


def aggregate_log_probs(
    z: Tensor, means: Tensor, scales: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """log q(z), sum over d of log q(z_d), and log q(z_m|x_m), (M,) each; q(z) is the mean over N Gaussians.

    z: (M, D), drawn from the first M of the Gaussians. means, scales: (N, D).
    """
    joint, marginals, own = [], [], []
    chunk = chunk or max(1, 4 * MAX_VALUES // means.numel())
    log_n = math.log(len(means))
    for start in range(0, len(z), chunk):
        rows = z[start : start + chunk, None]  # (chunk, 1, D)
        densities = -0.5 * ((rows - means) / scales).square() - scales.log() - 0.5 * math.log(2 * math.pi)
        totals = densities.sum(2)
        joint.append(totals.logsumexp(1) - log_n)
        marginals.append((densities.logsumexp(1) - log_n).sum(1))
        own.append(totals[torch.arange(len(rows)), start + torch.arange(len(rows))])
    return torch.cat(joint), torch.cat(marginals), torch.cat(own)

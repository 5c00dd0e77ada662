"""Probabilistic PCA, the linear VAE with its exact posterior, as a baseline; and the errors of reconstructions.

Tipping & Bishop 1999, doi:10.1111/1467-9868.00196. N images as rows of D pixel values, K latents; sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lab.likelihoods import MIN_VARIANCE
from vae_lab.metrics.subject import Row, Subject, left_out, mean_row

Batches = Callable[[], Iterable[Tensor]]  # images (B, D), the same at each call
EXACT_SIZE = 1024  # of a matrix whose eigenvectors one thread finds in half a second
POWER_ITERATIONS, OVERSAMPLING = 4, 10
MAX_MULTIPLICATIONS = 3e11  # of one fit: about 10 s on two cores


@contextmanager
def one_thread() -> Iterator[None]:
    """A context with one thread of torch: with other work on the machine, several take 3 to 40 times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Moments(NamedTuple):
    """Moments of images: the first pass over them."""

    num_images: int
    mean: Tensor  # (D,)
    variance: Tensor  # sum over the D values


class ProbabilisticPCA(NamedTuple):
    """x = W z + mean + noise, z ~ N(0, I); W are the components times sqrt(variances - noise)."""

    mean: Tensor  # (D,)
    components: Tensor  # (D, K), orthonormal
    variances: Tensor  # of the components, (K,)
    noise: Tensor  # variance of the noise, ()

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x) in nats, (B,). x: (B, D)."""
        (dims, latents), centred = self.components.shape, x.double() - self.mean
        projected = (centred @ self.components).square()
        residual = centred.square().sum(1) - projected.sum(1)
        log_det = self.variances.log().sum() + (dims - latents) * self.noise.log()
        squares = (projected / self.variances).sum(1) + residual / self.noise
        return -0.5 * (dims * math.log(2 * math.pi) + log_det + squares)

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at the posterior mean of z, (B, D)."""
        weight = self.components * (self.variances - self.noise).sqrt()
        return (x.double() - self.mean) @ (weight / self.variances) @ weight.T + self.mean


@one_thread()
def moments(batches: Batches) -> Moments:
    """Moments of at least one image."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for x in batches():
        count += len(x)
        total = total.to(x.device) + x.double().sum(0)
        squares = squares.to(x.device) + x.double().square().sum()
    mean = total / count
    return Moments(count, mean, squares / count - mean.square().sum())


def max_images(num_dims: int, num_latents: int) -> int:
    """Images that a fit in seconds may use."""
    per_image = num_dims * (num_dims if num_dims <= EXACT_SIZE else 2 * POWER_ITERATIONS * (num_latents + OVERSAMPLING))
    return int(MAX_MULTIPLICATIONS / per_image)


@one_thread()
def fit_ppca(batches: Batches, num_latents: int, found: Moments | None = None) -> ProbabilisticPCA:
    """The maximum of the likelihood with a noise of at least MIN_VARIANCE, on the CPU.

    Exact if N or D is at most 1024, else by random projections, with a mean squared error up to 1 per cent larger.
    found: the moments of the same images. ValueError: K is not below both D and N - 1.
    """
    found = found or moments(batches)
    dims = len(found.mean)
    if not 0 < num_latents < min(dims, found.num_images - 1):
        raise ValueError(f"{num_latents} latents for {found.num_images} images of {dims} values")
    if dims <= EXACT_SIZE:
        variances, components = _from_covariance(batches, found, num_latents)
    elif found.num_images <= EXACT_SIZE:
        variances, components = _from_gram_matrix(batches, found, num_latents)
    else:
        variances, components = _from_random_projections(batches, found, num_latents)
    noise = ((found.variance.cpu() - variances.sum()) / (dims - num_latents)).clamp(min=MIN_VARIANCE)
    return ProbabilisticPCA(found.mean.cpu(), components, variances.maximum(noise), noise)


def _from_covariance(batches: Batches, found: Moments, num_latents: int) -> tuple[Tensor, Tensor]:
    second = torch.zeros(len(found.mean), len(found.mean), dtype=torch.float64, device=found.mean.device)
    for x in batches():
        centred = x.double() - found.mean
        second.addmm_(centred.T, centred)
    return top_eigenvectors(second / found.num_images, num_latents)


def _from_gram_matrix(batches: Batches, found: Moments, num_latents: int) -> tuple[Tensor, Tensor]:
    """N inner products have the eigenvalues of the covariance."""
    centred = torch.cat([x - found.mean.to(x.dtype) for x in batches()])
    parts = centred.split(4096, dim=1)
    gram = sum((part.double() @ part.double().T for part in parts), torch.zeros((), device=centred.device))
    variances, vectors = top_eigenvectors(gram / found.num_images, num_latents)
    vectors = vectors / (found.num_images * variances.clamp(min=1e-12)).sqrt()
    return variances, torch.cat([part.cpu().double().T @ vectors for part in parts])


def _from_random_projections(batches: Batches, found: Moments, num_latents: int) -> tuple[Tensor, Tensor]:
    """Subspace iteration in a few passes. Halko et al. 2011, arXiv:0909.4061, algorithm 4.4."""
    device, dims = found.mean.device, len(found.mean)
    size = min(num_latents + OVERSAMPLING, dims)
    basis = torch.randn(dims, size, generator=torch.Generator().manual_seed(0)).to(device)
    for _ in range(POWER_ITERATIONS):
        product = torch.zeros(dims, size, dtype=torch.float64, device=device)
        for x in batches():
            centred = x - found.mean.to(x.dtype)
            product += centred.T @ (centred @ basis.to(x.dtype))
        basis = torch.linalg.qr(product).Q
    projected = torch.zeros(size, size, dtype=torch.float64, device=device)
    for x in batches():
        rows = (x.double() - found.mean) @ basis
        projected.addmm_(rows.T, rows)
    variances, vectors = top_eigenvectors(projected / found.num_images, num_latents)
    return variances, basis.cpu() @ vectors


def top_eigenvectors(symmetric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, (count,), and their eigenvectors, (N, count), on the CPU."""
    values, vectors = torch.linalg.eigh(symmetric.cpu())
    return values[-count:].flip(0).clamp(min=0), vectors[:, -count:].flip(1)


def channel_moments(difference: Tensor) -> Tensor:
    """Second moments of the channels about zero, (C, C), summed over images and pixels. difference: (B, C, H, W)."""
    rows = difference.double().transpose(0, 1).flatten(1)
    return rows @ rows.T


def reconstruction_metrics(errors: Tensor, deviations: Tensor, num_pixels: int, count: int) -> dict[str, float]:
    """`mse`, and of colour images `chroma` and `reconstruction_nll`.

    chroma: squared error of the colour (a pixel minus the mean of its channels), as a share of that of the mean image:
    1 if no colour is reconstructed. reconstruction_nll: minus the log-density in nats per image, up to a constant, of
    the errors under the best Gaussian over the channels of a pixel.
    errors, deviations: `channel_moments` of x minus its reconstruction and of x minus the mean image, (C, C), over
    `count` images of num_pixels = H*W.
    """
    channels = len(errors)
    found = {"mse": float(errors.trace()) / (count * num_pixels * channels)}
    varies = float(_colour(deviations)) > 1e-9 * float(deviations.trace())  # False for grey images
    if varies:
        found["chroma"] = float(_colour(errors) / _colour(deviations))
        found["reconstruction_nll"] = 0.5 * num_pixels * float(torch.logdet(errors / (count * num_pixels)))
    return found


def _colour(second: Tensor) -> Tensor:
    """Sum of squares of the channels minus their mean."""
    return second.trace() - second.sum() / len(second)


class Baseline(NamedTuple):
    """What a model is compared with."""

    num_images: int  # of the training set, used in the fits
    mean: Tensor  # the mean training image, (D,), on the CPU
    pca: ProbabilisticPCA | None
    left_out: str  # why there is no PCA


def fit_baseline(batches: Callable[[int], Iterable[Tensor]], num_latents: int, num_dims: int, size: int) -> Baseline:
    """PCA of as many latents as a model has, if it can be fitted, to as many of `size` training images as take seconds.

    batches: the first so many images, (B, D).
    """
    count = min(size, max_images(num_dims, num_latents))
    found = moments(lambda: batches(count))
    reason = ""
    if num_latents >= num_dims:
        reason = f"{num_latents} latents hold all {num_dims} values of an image"
    elif num_latents >= count - 1:
        reason = f"{num_latents} latents need at least {num_latents + 2} training images; {count} can be used"
    pca = None if reason else fit_ppca(lambda: batches(count), num_latents, found)
    return Baseline(count, found.mean.cpu(), pca, reason)


def baseline_rows(subject: Subject) -> Iterator[Row]:
    """`pca_log_likelihood` (exact) and `pca_mse` of probabilistic PCA with as many latents as the model, and `mean_mse`
    of the mean training image: what a model has to beat."""
    model, data = subject.model, subject.data
    latents = sum(math.prod(latent.shape) for latent in model.latents)

    def training(count: int) -> Iterator[Tensor]:
        return (x.flatten(1) for x, _ in subject.blocks(count, "probabilistic PCA", "train"))

    count, mean, pca, reason = fit_baseline(training, latents, model.image.num_dims, data.size("train"))
    of_mean, of_pca, log_px = [], [], []
    for x, _ in subject.blocks(None, "baseline"):
        rows = x.flatten(1).cpu().double()
        of_mean.append((rows - mean).square().mean(1))
        if pca is not None:
            of_pca.append((rows - pca.reconstruct(rows)).square().mean(1))
            log_px.append(pca.log_prob(rows))
    protocol = {"latents": latents, "training images": count}
    if pca is None:
        yield from left_out(reason, "pca_log_likelihood", "pca_mse")
    else:
        if model.likelihood.levels is None:
            yield mean_row("pca_log_likelihood", torch.cat(log_px), **protocol, unit="nats per image")
        else:
            yield from left_out("a density is not comparable with this model's probability mass", "pca_log_likelihood")
        yield mean_row("pca_mse", torch.cat(of_pca), **protocol)
    yield mean_row("mean_mse", torch.cat(of_mean), **{"training images": count})

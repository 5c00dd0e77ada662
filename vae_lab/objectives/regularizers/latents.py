"""Penalties of latents: q(z)'s covariance (DIP-VAE), distance to p(z) and total correlation; commitment to codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.distributions.codes import QuantizedDelta
from vae_lab.distributions.gaussians import as_diagonal_normal
from vae_lab.distributions.reshaped import UnflattenedBatch
from vae_lab.objectives.regularizers.base import Regularizer, require_number, require_single_latent, sample_prior

NO_CODES = "choose model/posterior=nearest_code, or remove commitment from objective/regularizers"
Kernel = Literal["rbf", "imq"]
Estimator = Literal["minibatch_stratified", "minibatch_weighted"]
# The scales of the inverse multiquadratic kernel are those of WAE's published code.
SCALES: dict[Kernel, tuple[float, ...]] = {"rbf": (1.0,), "imq": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)}


class DisentangledInferredPrior(Regularizer):
    """Squared distance between a covariance and the identity: off the diagonal, plus `diagonal` times on the diagonal.

    Kumar et al. 2018, arXiv:1711.00848, eqs. 6 and 7. covariance: of the `means` of q(z|x) (DIP-VAE-I), or of the
    `latents` themselves (DIP-VAE-II), which is that plus the mean covariance of q(z|x). The batch stands for the
    training set. weight: the paper's lambda_od; diagonal: its lambda_d / lambda_od. ValueError: several layers of
    latents, latents that are not vectors; at the first step, a posterior that is not Gaussian.
    """

    def __init__(
        self, spec: TrainingSpec, weight: float, diagonal: float, covariance: Literal["means", "latents"]
    ) -> None:
        name = "dip_vae_ii" if covariance == "latents" else "dip_vae_i"
        super().__init__(name, weight)
        require_single_latent(spec, name)
        require_number(name, "diagonal", diagonal)
        self.diagonal, self.covariance = diagonal, covariance

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """The penalty of the batch, (); 0 for a single image, which has no covariance."""
        [latent] = inputs.trace.latents
        if latent.z.shape[1] == 1:
            return latent.z.new_zeros(())
        with torch.autocast(latent.z.device.type, enabled=False):
            covariance = self._covariance(latent.posterior)
        variances = covariance.diagonal()
        off_diagonal = (covariance - variances.diag()).square().sum()
        return off_diagonal + self.diagonal * (variances - 1).square().sum()

    def _covariance(self, posterior: Distribution) -> Tensor:
        means, within = gaussian_moments(posterior)
        centred = means - means.mean(0)
        between = centred.mT @ centred / (len(means) - 1)
        return between + within if self.covariance == "latents" else between


def gaussian_moments(posterior: Distribution) -> tuple[Tensor, Tensor]:
    """Means of q(z|x), (B, D), and their mean covariance, (D, D). ValueError: a posterior that is not Gaussian."""
    if as_diagonal_normal(posterior) is not None:
        return posterior.mean.flatten(1), posterior.variance.flatten(1).mean(0).diag()
    if isinstance(posterior, MultivariateNormal):
        return posterior.mean, posterior.covariance_matrix.mean(0)
    raise ValueError(
        "objective.regularizers: DIP-VAE needs the mean and the covariance of q(z|x): choose "
        "model/posterior=diagonal_gaussian, or full_covariance where latents are vectors "
        f"(found {type(posterior).__name__})"
    )


class MaximumMeanDiscrepancy(Regularizer):
    """MMD^2 between the aggregate posterior q(z) and the prior p(z), of which only samples are needed.

    Zhao et al. 2019, arXiv:1706.02262; Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 2. Each batch is compared
    with as many prior samples, which carry no gradient: a learned prior is trained by the KL alone.

    kernel: of the squared distance d, exp(-d / c) (`rbf`) or c / (c + d) (`imq`), summed over the widths c. scales: the
    widths, in units of the mean squared distance of two samples from N(0, I), 2 D (on the unit sphere 2); None for
    `SCALES`. unbiased: exclude the pairs of a sample with itself; the estimate may be below 0. ValueError: several
    layers of latents, latents that are codes; at the first step, a prior that has no samples.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        weight: float,
        kernel: Kernel = "imq",
        scales: Sequence[float] | None = None,
        unbiased: bool = True,
    ) -> None:
        super().__init__("mmd", weight)
        latent = require_single_latent(spec, "mmd", ("vector", "sphere"))
        scales = SCALES[kernel] if scales is None else tuple(scales)
        if not scales or min(scales) <= 0:
            raise ValueError(f"objective.regularizers.mmd.scales are numbers above 0, at least one; found {scales}")
        unit = 2.0 * (math.prod(latent.shape) if latent.kind == "vector" else 1)
        self.kernel, self.unbiased = kernel, unbiased
        self.widths = tuple(scale * unit for scale in scales)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """MMD^2 of the batch, (), averaged over samples; 0 for a single image if `unbiased`."""
        [latent] = inputs.trace.latents
        samples, images = latent.z.shape[:2]
        if self.unbiased and images == 1:  # no pairs of different samples
            return latent.z.new_zeros(())
        prior = sample_prior(latent, (samples, images))
        return squared_mmd(latent.z.flatten(2), prior.flatten(2), self.kernel, self.widths, self.unbiased).mean()


def squared_mmd(a: Tensor, b: Tensor, kernel: Kernel, widths: Sequence[float], unbiased: bool = True) -> Tensor:
    """MMD^2 between samples (*batch, B, D) of two distributions, (*batch).

    Gretton et al. 2012, "A kernel two-sample test", eq. 3; biased: the square of eq. 5.
    """
    within = sum(pairwise_mean(kernel_matrix(s, s, kernel, widths), unbiased) for s in (a, b))
    return within - 2 * kernel_matrix(a, b, kernel, widths).mean((-2, -1))


def pairwise_mean(values: Tensor, unbiased: bool) -> Tensor:
    """Mean of (*batch, B, B) over the last two dimensions; unbiased: without the diagonal."""
    if not unbiased:
        return values.mean((-2, -1))
    size = values.shape[-1]
    off_diagonal = values.sum((-2, -1)) - values.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / (size * (size - 1))


def kernel_matrix(a: Tensor, b: Tensor, kernel: Kernel, widths: Sequence[float]) -> Tensor:
    """Kernel matrix of a (*batch, N, D) and b (*batch, M, D), (*batch, N, M), summed over widths."""
    # From differences: |a|^2 + |b|^2 - 2 a.b loses precision at small distances.
    distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    terms = [torch.exp(-distances / c) if kernel == "rbf" else c / (c + distances) for c in widths]
    return torch.stack(terms).sum(0)


class TotalCorrelation(Regularizer):
    """KL(q(z) || prod_d q(z_d)) in nats, q(z) the mean of q(z|x) over the N training images.

    Chen et al. 2018, arXiv:1802.04942, eq. 2 and appendix C. It adds to the total correlation within the KL: the
    paper's beta is `1 + weight` with `objective.beta=1`. Costs S B^2 D densities. estimate: see
    `log_importance_weights`. ValueError: several layers of latents, latents that are not vectors; at the first step, a
    posterior that does not factorise.
    """

    def __init__(self, spec: TrainingSpec, weight: float, estimate: Estimator = "minibatch_stratified") -> None:
        super().__init__("total_correlation", weight)
        require_single_latent(spec, "total_correlation")
        self.num_images, self.estimate = spec.num_images, estimate

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """Estimate of log q(z) / prod_d q(z_d), (B,), averaged over samples; its mean estimates the KL."""
        [latent] = inputs.trace.latents
        return total_correlation(latent.z, latent.posterior, self.num_images, self.estimate)


def total_correlation(
    z: Tensor, posterior: Distribution, num_images: int, estimate: Estimator = "minibatch_stratified"
) -> Tensor:
    """log q(z) - sum_d log q(z_d) at samples z (S, B, *event), averaged over S: (B,), in nats.

    posterior: q(z|x) of the B images of the batch, sampled without replacement from `num_images`.
    """
    log_q = pairwise_log_densities(z, posterior)
    log_weights = log_importance_weights(z, num_images, estimate)
    # A weight belongs to an image, not a dimension: it enters the sum over dimensions once, and each factor once.
    joint = (log_q.sum(-1) + log_weights).logsumexp(-1)
    product = (log_q + log_weights.unsqueeze(-1)).logsumexp(-2).sum(-1)
    return (joint - product).mean(0)


def pairwise_log_densities(z: Tensor, posterior: Distribution) -> Tensor:
    """log q(z_d | x_j) of the sample of each image i under each image j, (S, B_i, B_j, D).

    ValueError: a posterior that does not factorise.
    """
    if (base := as_diagonal_normal(posterior)) is None:
        raise ValueError(
            "objective.regularizers.total_correlation needs the density of each dimension of q(z|x): choose "
            f"model/posterior=diagonal_gaussian (found {type(posterior).__name__}), or the discriminator's estimate, "
            "objective/regularizers=[density_ratio]"
        )
    log_q: Tensor = base.log_prob(z.unsqueeze(2))
    return log_q.flatten(3)


def log_importance_weights(z: Tensor, num_images: int, estimate: Estimator) -> Tensor:
    """Log weight of q(.|x_j) in the estimate of q(.) at a sample of image i, (B, B), row i.

    minibatch_stratified: image i has weight 1 / N, the others of the batch represent the other N - 1 images: unbiased.
    (In appendix C.2 one of the others has 1 / N less weight than each of the rest; here all have the same, otherwise a
    batch of all images would not be exact.) A single image represents all.

    minibatch_weighted: 1 / N each, as if the images outside the batch had no density there: a lower bound on q(z). (The
    1 / (N B) of appendix C.1 is for batches sampled with replacement. These are not, so p(batch) / r(batch | i) there
    is B / N; the gradient is the same.)

    Both are exact for a batch of all images.
    """
    batch_size = z.shape[1]
    if estimate == "minibatch_weighted":
        own = others = 1 / num_images
    elif batch_size == 1:
        own, others = 1.0, 0.0
    else:
        own, others = 1 / num_images, (num_images - 1) / (num_images * (batch_size - 1))
    return z.new_full((batch_size, batch_size), others).fill_diagonal_(own).log()


class Commitment(Regularizer):
    """Squared distance between the encoder's output and its detached codes, summed over all layers of codes.

    Summed over features and positions, as a likelihood sums over pixels; `weight` is the beta of van den Oord et al.
    2017, arXiv:1711.00937, eq. 3. ValueError: no latent of the kind codes; at the first call, none that is quantised.
    """

    def __init__(self, spec: TrainingSpec, weight: float = 0.25) -> None:
        super().__init__("commitment", weight)
        if all(latent.kind != "codes" for latent in spec.latents):
            raise ValueError(f"objective.regularizers.commitment: the latents are no codes; {NO_CODES}")

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """(B,), averaged over samples where a layer has separate codes for each sample of the layers above."""
        distances = [commitment_distance(latent.posterior) for latent in inputs.trace.latents]
        quantized = [each for each in distances if each is not None]
        if not quantized:
            raise ValueError(f"objective.regularizers.commitment: the latents are not quantised; {NO_CODES}")
        return torch.stack(quantized).sum(0)


def commitment_distance(posterior: Distribution) -> Tensor | None:
    """|inputs - codes|^2, (B,), with a gradient for the inputs; None for a posterior that does not quantise."""
    if isinstance(posterior, UnflattenedBatch):
        flat = commitment_distance(posterior.base_dist)
        return None if flat is None else flat.unflatten(0, posterior.batch_shape).mean(0)
    if isinstance(posterior, QuantizedDelta):
        return (posterior.inputs - posterior.mode.detach()).square().flatten(1).sum(1)
    return None

"""Total correlation of the aggregate posterior, estimated from the minibatch: beta-TCVAE."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.distributions.gaussians import as_diagonal_normal
from vae_lab.objectives.regularizers.base import Regularizer, require_single_latent

Estimator = Literal["minibatch_stratified", "minibatch_weighted"]


class TotalCorrelation(Regularizer):
    """KL(q(z) || prod_d q(z_d)) in nats, q(z) the mean of q(z|x) over the N training images.

    Chen et al. 2018, arXiv:1802.04942, eq. 2 and appendix C. It adds to the total correlation within the KL: the
    paper's beta is `1 + weight` with `objective.beta=1`. Costs S B^2 D densities. estimate: see
    `log_importance_weights`.

    ValueError: several layers of latents, latents that are not vectors; at the first step, a posterior that does not
    factorise.
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

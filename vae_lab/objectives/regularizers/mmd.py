"""Maximum mean discrepancy between latents and prior samples: InfoVAE, WAE-MMD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.objectives.regularizers.base import Regularizer, require_single_latent, sample_prior

Kernel = Literal["rbf", "imq"]
# The scales of the inverse multiquadratic kernel are those of WAE's published code.
SCALES: dict[Kernel, tuple[float, ...]] = {"rbf": (1.0,), "imq": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)}


class MaximumMeanDiscrepancy(Regularizer):
    """MMD^2 between the aggregate posterior q(z) and the prior p(z), of which only samples are needed.

    Zhao et al. 2019, arXiv:1706.02262; Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 2. Each batch is compared
    with as many prior samples, which carry no gradient: a learned prior is trained by the KL alone.

    kernel: of the squared distance d, exp(-d / c) (`rbf`) or c / (c + d) (`imq`), summed over the widths c. scales: the
    widths, in units of the mean squared distance of two samples from N(0, I), 2 D (on the unit sphere 2); None for
    (1,), or for imq those of WAE's code. unbiased: exclude the pairs of a sample with itself; the estimate may be below
    0.

    ValueError: several layers of latents, latents that are codes; at the first step, a prior that has no samples.
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

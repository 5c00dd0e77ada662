"""ELBO of a whole split, as sums and a count: independent of the batch sizes and the number of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution
from torchmetrics import Metric

from vae_lab.core import LatentSpec, Trace
from vae_lab.objectives.bounds import BoundTerms, elbo, kl_per_dimension, total_kl

MAX_LOGGED_DIMENSIONS = 32
ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, arXiv:1509.00519, section 5.2


class ElboSums(Metric):
    """Sums over images of the terms of the ELBO and of the moments of the posterior means.

    `compute` returns `elbo`, `log_px`, `kl`, `loss` (means in nats per image, beta = 1 in the ELBO), and `elbo_stderr`,
    the standard error of the mean ELBO over images. With one layer, per latent dimension, `kl_means()` where the KL
    factorises, and `active()` where the posterior has a mean and is not over codes; with several, the KL of each layer.
    """

    full_state_update = False

    totals: Tensor
    elbo_moments: Tensor  # sums of the ELBO and of its square, float64
    count: Tensor
    kl_sums: Tensor
    mean_sums: Tensor
    square_sums: Tensor
    layer_sums: Tensor

    def __init__(
        self, latent_dim: int, num_layers: int = 1, sync_on_compute: bool = True, has_means: bool = True
    ) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.factorises, self.num_layers = num_layers == 1, num_layers
        self.has_means = has_means and num_layers == 1
        self.add_state("layer_sums", torch.zeros(num_layers), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(4), dist_reduce_fx="sum")
        self.add_state("elbo_moments", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("kl_sums", "mean_sums", "square_sums"):
            self.add_state(name, torch.zeros(latent_dim), dist_reduce_fx="sum")

    @classmethod
    def for_latents(cls, latents: Sequence[LatentSpec], sync_on_compute: bool = True) -> ElboSums:
        return cls(math.prod(latents[0].shape), len(latents), sync_on_compute, latents[0].kind != "codes")

    def update(self, trace: Trace, terms: BoundTerms, loss: Tensor) -> None:
        """Add one batch. loss: the objective's value, (B,)."""
        per_image = torch.stack((elbo(terms), terms.log_px.mean(0), total_kl(terms).mean(0), loss))
        self.totals += per_image.sum(1)
        elbos = per_image[0].double()
        self.elbo_moments += torch.stack((elbos.sum(), elbos.square().sum()))
        self.count += per_image.shape[1]
        self.layer_sums += terms.kl.mean(1).sum(1)
        per_dimension = kl_per_dimension(trace.latents[0]) if self.factorises else None
        self.factorises = per_dimension is not None
        if per_dimension is not None:
            self.kl_sums += per_dimension.flatten(1).sum(0)
        means = posterior_means(trace.latents[0].posterior) if self.has_means else None
        self.has_means = means is not None
        if means is not None:
            self.mean_sums += means.sum(0)
            self.square_sums += means.square().sum(0)

    def compute(self) -> dict[str, Tensor]:
        means = dict(zip(("elbo", "log_px", "kl", "loss"), (self.totals / self.count).unbind(), strict=True))
        total, squares = self.elbo_moments
        variance = (squares - total.square() / self.count).clamp(min=0) / (self.count - 1).clamp(min=1)
        return means | {"elbo_stderr": (variance / self.count).sqrt()}

    def kl_means(self) -> Tensor | None:
        """KL of each latent dimension, (D,), mean over images, on the CPU. Call after `compute`, in `sync_context`."""
        return (self.kl_sums / self.count).cpu() if self.factorises else None

    def latent_metrics(self) -> dict[str, float]:
        """`active_units`, and `kl/dim_<d>` of the dimensions of largest KL, or `kl/layer_<l>` from the top down.

        Call after `compute`, in `sync_context`.
        """
        if self.num_layers > 1:
            means = (self.layer_sums / self.count).tolist()
            return {f"kl/layer_{layer}": kl for layer, kl in enumerate(means)}
        found = {"active_units": float(self.active().sum())} if self.has_means else {}
        kl = self.kl_means()
        if kl is None:
            return found
        top = kl.argsort(descending=True)[:MAX_LOGGED_DIMENSIONS].sort().values
        return found | {f"kl/dim_{d}": float(kl[d]) for d in top.tolist()}

    def active(self) -> Tensor:
        """Active dimensions, (D,) bool: variance of the posterior mean over images above 0.01."""
        mean = self.mean_sums / self.count
        return self.square_sums / self.count - mean.square() > ACTIVE_VARIANCE


def posterior_means(posterior: Distribution) -> Tensor | None:
    """Means of q(z|x), (B, D); None for a distribution without one, as a flow."""
    try:
        return posterior.mean.flatten(1)
    except NotImplementedError:
        return None


def bits_per_dim(nats: float, num_dims: int) -> float:
    """Convert nats per image to bits per dimension; only for the log of a probability mass."""
    return nats / (num_dims * math.log(2))

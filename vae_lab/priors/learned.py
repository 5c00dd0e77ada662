"""Learned priors: Gaussians and mixtures, a flow, the posteriors of pseudo-inputs.

Those with a `fit` can also be fitted to the latents of a trained model, by expectation maximisation or in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal

from vae_lab.core import NO_INPUTS, ConditionalPrior, LatentKind, LatentSpec, Prior, PriorInputs
from vae_lab.distributions.flows import AffineCoupling, FlowDistribution
from vae_lab.distributions.gaussians import (
    FullNormal,
    bounded_scale,
    diagonal_normal,
    logvar_for_scale,
    mixture,
    scale_tril,
    soft_clamp,
)
from vae_lab.distributions.reshaped import SpatialDistribution, to_shape
from vae_lab.distributions.sphere import VonMisesFisher
from vae_lab.networks.mlp import dense
from vae_lab.priors.fixed import StandardNormal

GAIN = 10.0  # logits per weight of pseudo-inputs; without it, black to white takes ten times as many optimiser steps
LOG_SCALE_LIMIT = 5.0  # bound on the log scale of a conditional prior
MIN_VARIANCE = 1e-6  # added to fitted variances; scikit-learn's default


class GaussianMixture(Prior):
    """A mixture of diagonal Gaussians with learned means, scales and weights.

    num_components: K. spread: standard deviation of the initial means around 0, so that components differ.
    ValueError: K < 1; a negative spread.
    """

    has_fit = True

    def __init__(self, latent: LatentSpec, num_components: int = 50, spread: float = 1.0) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"model.prior.num_components is at least 1; found {num_components}")
        if spread < 0:
            raise ValueError(f"model.prior.spread is a standard deviation, at least 0; found {spread}")
        self.means = nn.Parameter(spread * torch.randn(num_components, *latent.shape))
        self.logvars = nn.Parameter(torch.zeros(num_components, *latent.shape))
        self.logits = nn.Parameter(torch.zeros(num_components))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        return mixture(self.logits, diagonal_normal(self.means, bounded_scale(self.logvars)))

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Fit the mixture to latents (N, *shape) by expectation maximisation. ValueError: N < K."""
        from sklearn.mixture import GaussianMixture as Fitted

        count = len(self.logits)
        if len(z) < count:
            raise ValueError(
                f"model.prior.num_components={count}: fitting needs at least as many latents; found {len(z)}"
            )
        seed = int(torch.randint(2**31 - 1, ()))  # from torch's generator, which is seeded
        fitted = Fitted(count, covariance_type="diag", reg_covar=MIN_VARIANCE, max_iter=300, random_state=seed)
        fitted.fit(z.flatten(1).double().cpu().numpy())
        weights, means, variances = map(torch.from_numpy, (fitted.weights_, fitted.means_, fitted.covariances_))
        self.logits.copy_(weights.log())
        self.means.copy_(means.view_as(self.means))
        self.logvars.copy_(logvar_for_scale(variances.sqrt()).view_as(self.logvars))


class ClassGaussian(Prior):
    """p(z|y): a diagonal Gaussian per class with learned means and scales, initialised to N(0, I).

    Sohn et al. 2015, "Learning Structured Output Representation using Deep Conditional Generative Models".
    ValueError: images without labels; a call without labels.
    """

    needs_labels = True

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        if latent.image.num_classes < 1:
            raise ValueError(
                "model/prior=class_gaussian has one Gaussian per class, but these images have no labels.\n"
                "Choose data=mnist or other labelled images, or model/prior=gaussian_mixture"
            )
        self.means = nn.Parameter(torch.zeros(latent.image.num_classes, *latent.shape))
        self.logvars = nn.Parameter(torch.zeros(latent.image.num_classes, *latent.shape))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z|y), batch (B,), for labels y (B,)."""
        if inputs.y is None:
            raise ValueError("model/prior=class_gaussian depends on the labels: give it the labels y, int64 (B,)")
        return diagonal_normal(self.means[inputs.y], bounded_scale(self.logvars[inputs.y]))


class FullGaussian(Prior):
    """A Gaussian with full covariance over all n dimensions of a latent, initialised to N(0, I); n^2 / 2 parameters."""

    has_fit = True

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape, size = latent.shape, math.prod(latent.shape)
        self.mean = nn.Parameter(torch.zeros(size))
        self.logvar = nn.Parameter(torch.zeros(size))
        self.below = nn.Parameter(torch.zeros(size * (size - 1) // 2))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        normal = FullNormal(self.mean, scale_tril=scale_tril(self.logvar, self.below), validate_args=False)
        return to_shape(normal, self.shape)

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Set the mean and covariance to those of latents (N, *shape). ValueError: N < 2."""
        if len(z) < 2:
            raise ValueError(f"model/prior=full_gaussian: a covariance needs at least 2 latents; found {len(z)}")
        z = z.flatten(1).double()
        floor = MIN_VARIANCE * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        factor = torch.linalg.cholesky(torch.cov(z.mT).reshape(floor.shape) + floor)
        rows, columns = torch.tril_indices(len(factor), len(factor), -1, device=z.device)
        self.mean.copy_(z.mean(0))
        self.logvar.copy_(logvar_for_scale(factor.diagonal()))
        self.below.copy_(factor[rows, columns])


class ConditionalGaussian(ConditionalPrior):
    """A diagonal Gaussian with means and bounded log scales from the layers above; N(0, I) at the top."""

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.num_params = 2 * latent.shape[0]
        self.top_prior = StandardNormal(latent)

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        return self.top_prior(inputs)

    def conditioned_on(self, params: Tensor) -> Distribution:
        """params: (N, 2 D, *map), means then log scales. Batch (N,)."""
        mean, log_scale = params.float().chunk(2, 1)
        return diagonal_normal(mean, soft_clamp(log_scale, LOG_SCALE_LIMIT).exp())


class FlowPrior(Prior):
    """A standard normal transformed by affine couplings of alternating halves. Dinh et al. 2017, arXiv:1605.08803.

    num_flows: couplings. hidden: widths of each coupling's network. A feature map is flattened. The initial prior is
    exactly N(0, I), since the last layer of each network is zero; the other layers get a gradient from the second step.
    ValueError: a latent of one dimension, num_flows < 2, no hidden layer.
    """

    def __init__(self, latent: LatentSpec, num_flows: int = 6, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        self.shape, dims = latent.shape, math.prod(latent.shape)
        if dims < 2:
            raise ValueError(
                f"model.prior: couplings need a latent of at least 2 dimensions; found {dims}: "
                "choose model.latent_dim=2 or more, or model/prior=gaussian_mixture"
            )
        if num_flows < 2:
            raise ValueError(
                f"model.prior.num_flows is at least 2, a coupling for each half of the latent; found {num_flows}"
            )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"model.prior.hidden: at least one layer, of width at least 1; found {list(hidden)}")
        first, second = dims - dims // 2, dims // 2
        ways = [(first, second), (second, first)]
        self.networks = nn.ModuleList(coupling_network(*ways[i % 2], hidden) for i in range(num_flows))
        self.base = StandardNormal(latent._replace(shape=(dims,)))

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        flows = [AffineCoupling(network, swapped=i % 2 == 1) for i, network in enumerate(self.networks)]
        return to_shape(FlowDistribution(self.base(), flows), self.shape)


def coupling_network(kept: int, changed: int, hidden: Sequence[int]) -> nn.Module:
    """A network from the unchanged half to log scales and shifts of the other half; zero at initialisation."""
    last = nn.Linear(hidden[-1], 2 * changed)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*dense([kept, *hidden], nn.SiLU), last)


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z | u_k): a mixture of the posteriors of learned images u_k, the pseudo-inputs.

    Tomczak & Welling 2018, arXiv:1705.07120. num_pseudo_inputs: K. They pass through the encoder at each step, as K
    more images. A sigmoid keeps them in [0, 1]: on MNIST it gives a better bound than a clamp, which stops the gradient
    of saturated pixels. They start as noise. ValueError: K < 1; when called, no encoder, or a posterior whose density
    is not known everywhere.
    """

    kinds: tuple[LatentKind, ...] = ("vector", "sphere")
    needs_encoder = True

    def __init__(self, latent: LatentSpec, num_pseudo_inputs: int = 100) -> None:
        super().__init__()
        if num_pseudo_inputs < 1:
            raise ValueError(f"model.prior.num_pseudo_inputs is at least 1; found {num_pseudo_inputs}")
        self.weights = nn.Parameter(torch.randn(num_pseudo_inputs, *latent.image.shape) / GAIN)

    @property
    def pseudo_inputs(self) -> Tensor:
        """Images u, (K, C, H, W) in [0, 1]."""
        return torch.sigmoid(GAIN * self.weights)

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        if inputs.encode is None:
            raise ValueError("model/prior=vamp mixes posteriors, so it needs an encoder: `PriorInputs(encode=...)`")
        components = inputs.encode(self.pseudo_inputs)
        if not isinstance(components, (Independent, MultivariateNormal, VonMisesFisher, SpatialDistribution)):
            raise ValueError(
                "model/prior=vamp needs a posterior density known everywhere: choose model/posterior="
                f"diagonal_gaussian, full_covariance or von_mises_fisher (found {type(components).__name__})"
            )
        return mixture(torch.zeros(len(self.weights), device=self.weights.device), components)

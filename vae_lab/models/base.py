"""The base class of models, and checks that a posterior, a prior and labels are compatible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import ImageSpec, LatentSpec, Posterior, Prior, RegularizerInputs, Trace
from vae_lab.likelihoods import Likelihood

# Partials from the config (`_partial_`), which the model calls with sizes.
EncoderFactory = Callable[[tuple[int, int, int], int], nn.Module]
DecoderFactory = Callable[[int, tuple[int, int, int]], nn.Module]
LabelledBatches = Iterable[tuple[Tensor, Tensor | None]]  # images x (B, C, H, W) and labels (B,)


class Model(nn.Module):
    """The interface that training, evaluation and figures use."""

    image: ImageSpec
    conditional: bool  # on labels
    likelihood: Likelihood
    is_hierarchy = True  # False: one q(z|x), one p(z) and one p(x|z)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def latents(self) -> tuple[LatentSpec, ...]:
        """Spec of each stochastic layer's latent, from the top down."""
        raise NotImplementedError

    def trace_sampler(self, x: Tensor, y: Tensor | None = None) -> Callable[[int], Trace]:
        """Encode once; return a function from S to a trace of S posterior samples. x: (B, C, H, W); y: labels (B,)."""
        raise NotImplementedError

    def forward(self, x: Tensor, num_samples: int = 1, y: Tensor | None = None) -> Trace:
        """Trace of S = num_samples posterior samples of each image. y: labels (B,), for a conditional model."""
        return self.trace_sampler(x, y)(num_samples)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z) at the posterior's point estimate, batch (B,)."""
        raise NotImplementedError

    def sample(self, num_images: int, y: Tensor | None = None, temperature: float = 1.0) -> Distribution:
        """p(x|z) at prior samples, batch (num_images,). NotImplementedError: a prior without samples."""
        raise NotImplementedError

    @property
    def is_mass_function(self) -> bool:
        """Whether log p(x|z) is a log probability mass, so that bits per dimension are defined."""
        return self.likelihood.levels == self.image.levels and not parts_without_density(self)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z|x) of a model with one stochastic layer, batch (B,). ValueError: a model with several."""
        raise ValueError(
            f"{type(self).__name__} has {len(self.latents)} stochastic layers and no single q(z|x): call the model "
            "with images for the posterior of each layer"
        )

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z) of a model with one stochastic layer. z: (*batch, *event). ValueError: a model with several."""
        raise ValueError(f"{type(self).__name__} has {len(self.latents)} stochastic layers, no single z: call sample")

    def regularizer_inputs(self, trace: Trace, x: Tensor, y: Tensor | None) -> RegularizerInputs:
        """Inputs of the regularizers for a trace of the (clean) images x (B, C, H, W)."""
        return RegularizerInputs(trace, x, lambda z: self.decode(z, y), self._layers)

    @cached_property
    def _layers(self) -> tuple[nn.Module, ...]:
        return tuple(self.modules())


@contextmanager
def evaluation_mode(model: Model, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, seeded random numbers; modes and random state are restored on exit."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def latent_spec(posterior: Posterior, spatial_shape: tuple[int, ...], image: ImageSpec) -> LatentSpec:
    """The spec of a latent of this posterior; spatial_shape: (h, w) of the encoder's output, or ()."""
    shape = (posterior.num_features, *spatial_shape)
    codes = posterior.codes
    if codes is None:
        return LatentSpec(posterior.kind, shape, image)
    indices = codes.indices(torch.zeros(1, *shape))
    return LatentSpec(posterior.kind, shape, image, codes.num_codes, tuple(indices.shape[1:]))


KIND_NAMES = {"vector": "vectors", "sphere": "points on a sphere", "codes": "codes"}
PRIOR_CHOICES = {
    "vector": "standard_normal, gaussian_mixture, vamp or flow",
    "sphere": "uniform_sphere",
    "codes": "uniform_codes or autoregressive_codes",
}


def latent_kind_mismatch(posterior: Posterior, prior: Prior) -> str | None:
    """An error message if the prior does not support the posterior's kind of latents, else None."""
    if posterior.kind in prior.kinds:
        return None
    lives = " or ".join(KIND_NAMES[kind] for kind in prior.kinds)
    return (
        f"{type(prior).__name__} is a distribution over {lives}, but the latents of {type(posterior).__name__} are "
        f"{KIND_NAMES[posterior.kind]}."
    )


def require_same_latent_kind(posterior: Posterior, prior: Prior) -> None:
    """ValueError: the prior does not support the posterior's kind of latents."""
    if (wrong := latent_kind_mismatch(posterior, prior)) is not None:
        raise ValueError(f"model.prior: {wrong}\nChoose model/prior={PRIOR_CHOICES[posterior.kind]}")


def require_label_support(prior: Prior, conditional: bool) -> None:
    """ValueError: a prior that needs labels in an unconditional model, or pseudo-inputs in a conditional one."""
    if prior.needs_labels and not conditional:
        raise ValueError(
            f"model.prior: {type(prior).__name__} depends on the labels, but this model is unconditional.\n"
            "Choose model.conditional=true, or model/prior=gaussian_mixture"
        )
    if prior.needs_encoder and conditional:
        raise ValueError(
            f"model.prior: {type(prior).__name__} encodes pseudo-inputs without labels, but model.conditional=true.\n"
            "Choose model/prior=class_gaussian or gaussian_mixture"
        )


def parts_without_density(model: Model) -> list[str]:
    """Class names of the parts without a density; with any of them the "ELBO" is not a bound on log p(x)."""
    parts = (part for part in model.modules() if isinstance(part, (Posterior, Prior)) and not part.is_density)
    return [*dict.fromkeys(type(part).__name__ for part in parts)]


@torch.no_grad()
def fit_likelihood(model: Model, batches: LabelledBatches) -> None:
    """Fit the likelihood's parameters not learned by gradient (the variance of sigma-VAE) to training images."""
    likelihood = model.likelihood
    if not likelihood.fits_batch:
        return
    statistics = [likelihood.error_statistics(model(x, 1, y).likelihood.mean[0] - x) for x, y in batches]
    if statistics:
        likelihood.fit(torch.cat(statistics))


def point_estimate(posterior: Distribution, num_samples: int = 64) -> Tensor:
    """Point estimate of z, (B, *event): the mode of q(z|x), or the mean of num_samples if it has no mode."""
    try:
        return posterior.mode
    except NotImplementedError:
        return posterior.sample((num_samples,)).mean(0)

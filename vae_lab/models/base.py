"""What every model is, and whether its parts go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import ImageSpec, LatentSpec, Likelihood, Posterior, Prior, RegularizerInputs, Trace

# What a config leaves open (`_partial_`) and the model completes with sizes.
EncoderFactory = Callable[[tuple[int, int, int], int], nn.Module]
DecoderFactory = Callable[[int, tuple[int, int, int]], nn.Module]
LabelledBatches = Iterable[tuple[Tensor, Tensor | None]]  # images x (B, C, H, W) and labels (B,)


class Model(nn.Module):
    """What training, evaluation and pictures ask of any model: a module, so this is no Protocol."""

    image: ImageSpec
    conditional: bool  # whether it is given labels
    likelihood: Likelihood

    @property
    def latents(self) -> tuple[LatentSpec, ...]:
        """Of each stochastic layer, from the top down."""
        raise NotImplementedError

    def trace_sampler(self, x: Tensor, y: Tensor | None = None) -> Callable[[int], Trace]:
        """Encode once; a function from S to a trace of S posterior samples. x: (B, C, H, W); y: labels (B,)."""
        raise NotImplementedError

    def forward(self, x: Tensor, num_samples: int = 1, y: Tensor | None = None) -> Trace:
        """S = num_samples posterior samples of each image, decoded. y: of a conditional model."""
        return self.trace_sampler(x, y)(num_samples)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z) at the centre of the posterior, batch (B,)."""
        raise NotImplementedError

    def sample(self, num_images: int, y: Tensor | None = None, temperature: float = 1.0) -> Distribution:
        """p(x|z) at latents from the prior, batch (num_images,). NotImplementedError: a prior that has no samples."""
        raise NotImplementedError

    @property
    def is_mass_function(self) -> bool:
        """Whether log p(x|z) is the log of a probability, so that bits per dimension can be told."""
        return self.likelihood.levels == self.image.levels and not parts_without_density(self)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z|x) of a model with one stochastic layer, batch (B,). ValueError: a model with several."""
        raise ValueError(
            f"{type(self).__name__} has {len(self.latents)} stochastic layers, and no one q(z|x): the model itself, "
            "called with images, gives each layer's"
        )

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z) of a model with one stochastic layer. z: (*batch, *event). ValueError: a model with several."""
        raise ValueError(f"{type(self).__name__} has {len(self.latents)} stochastic layers, and no one z: call sample")

    def regularizer_inputs(self, trace: Trace, x: Tensor, y: Tensor | None) -> RegularizerInputs:
        """What a regularizer is shown of a trace of the (clean) images x (B, C, H, W)."""
        return RegularizerInputs(trace, x, lambda z: self.decode(z, y), self._layers)

    @cached_property
    def _layers(self) -> tuple[nn.Module, ...]:
        return tuple(self.modules())


def latent_spec(posterior: Posterior, spatial_shape: tuple[int, ...], image: ImageSpec) -> LatentSpec:
    """What a family and the map that an encoder leaves make of a latent."""
    shape = (posterior.num_features, *spatial_shape)
    codes = getattr(posterior, "codes", None)
    if codes is None:
        return LatentSpec(posterior.kind, shape, image)
    indices = codes.indices(torch.zeros(1, *shape))
    return LatentSpec(posterior.kind, shape, image, codes.num_codes, tuple(indices.shape[1:]))


KIND_NAMES = {"vector": "vectors", "sphere": "points of a sphere", "codes": "codes"}
PRIORS_OF = {
    "vector": "standard_normal, gaussian_mixture, vamp or flow",
    "sphere": "uniform_sphere",
    "codes": "uniform_codes or autoregressive_codes",
}


def space_mismatch(posterior: Posterior, prior: Prior) -> str | None:
    """A sentence where the prior does not live where the posterior's latents do; else None."""
    if posterior.kind in prior.kinds:
        return None
    lives = " or ".join(KIND_NAMES[kind] for kind in prior.kinds)
    return (
        f"{type(prior).__name__} is a distribution of {lives}, and the latents of {type(posterior).__name__} are "
        f"{KIND_NAMES[posterior.kind]}."
    )


def require_same_space(posterior: Posterior, prior: Prior) -> None:
    """ValueError unless the prior lives where the posterior's latents do."""
    if (wrong := space_mismatch(posterior, prior)) is not None:
        raise ValueError(f"model.prior: {wrong}\nChoose model/prior={PRIORS_OF[posterior.kind]}")


def require_label_support(prior: Prior, conditional: bool) -> None:
    """ValueError for a prior of labels in a model without, or one that encodes images whose labels nobody knows."""
    if getattr(prior, "needs_labels", False) and not conditional:
        raise ValueError(
            f"model.prior: {type(prior).__name__} depends on the labels, which this model does not see.\n"
            "Choose model.conditional=true, or model/prior=gaussian_mixture"
        )
    if getattr(prior, "needs_encoder", False) and conditional:
        raise ValueError(
            f"model.prior: {type(prior).__name__} encodes images that have no labels, and model.conditional=true.\n"
            "Choose model/prior=class_gaussian or gaussian_mixture"
        )


def parts_without_density(model: Model) -> list[str]:
    """The families and priors that have none, by name: with one of them the "ELBO" is no bound on log p(x)."""
    return [*dict.fromkeys(type(part).__name__ for part in model.modules() if not getattr(part, "is_density", True))]


@torch.no_grad()
def fit_likelihood(model: Model, batches: LabelledBatches) -> None:
    """Fit what a model's likelihood does not learn by gradient (the variance of sigma-VAE) to training images."""
    fit = getattr(model.likelihood, "fit", None)
    if fit is None:
        return
    errors = [(model(x, 1, y).likelihood.mean[0] - x).square().mean((1, 2, 3)) for x, y in batches]
    if errors:
        fit(torch.cat(errors))


def point_estimate(posterior: Distribution, num_samples: int = 64) -> Tensor:
    """One z to stand for q(z|x), (B, *event): its mode; the mean of some samples where no mode is known."""
    try:
        return posterior.mode
    except NotImplementedError:
        return posterior.sample((num_samples,)).mean(0)

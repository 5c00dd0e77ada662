"""Networks that leave and take a map of latents, and the models made of them."""

from functools import partial

import pytest
import torch

from vae_lab.core import ImageSpec, RegularizerInputs, TrainingSpec
from vae_lab.likelihoods import Bernoulli
from vae_lab.models import VAE
from vae_lab.networks import ConvDecoder, ConvEncoder, SpatialDecoder, SpatialEncoder
from vae_lab.networks.resnet import require_same_spatial_shape
from vae_lab.objectives import elbo
from vae_lab.objectives.bounds import bound_terms
from vae_lab.objectives.regularizers import Commitment
from vae_lab.posteriors import DiagonalGaussian, NearestCode, RelaxedCategorical
from vae_lab.priors import AutoregressiveCodes, StandardNormal, UniformCodes

BINARY = ImageSpec(1, 8, 12, levels=2)
SMALL = {"width": 8, "blocks": 1}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 48), (2, 8, 8)])
@pytest.mark.parametrize("halvings", [1, 2])
def test_the_map_is_the_image_halved(shape, halvings):
    sides = tuple(side // 2**halvings for side in shape[1:])
    encoder = SpatialEncoder(shape, 5, **SMALL, halvings=halvings)
    decoder = SpatialDecoder(6, (4, *shape[1:]), **SMALL, halvings=halvings)
    assert encoder.spatial_shape == decoder.spatial_shape == sides
    assert encoder(torch.rand(2, *shape)).shape == (2, 5, *sides)
    assert decoder(torch.randn(2, 6, *sides)).shape == (2, 4, *shape[1:])


@pytest.mark.parametrize("network", [SpatialEncoder, SpatialDecoder])
def test_maps_that_cannot_be_are_refused(network):
    sizes = ((1, 30, 28), 4) if network is SpatialEncoder else (4, (1, 30, 28))
    with pytest.raises(ValueError, match="30x28 image cannot be halved 2 times"):
        network(*sizes)
    with pytest.raises(ValueError, match=r"coder.halvings is at least 1; found 0"):
        network(*sizes, halvings=0)


def test_networks_of_different_maps_are_refused():
    encoder, decoder = SpatialEncoder((1, 8, 8), 4, **SMALL), SpatialDecoder(4, (1, 8, 8), **SMALL, halvings=1)
    require_same_spatial_shape(encoder, SpatialDecoder(4, (1, 8, 8), **SMALL))
    require_same_spatial_shape(ConvEncoder((1, 8, 8), 4), ConvDecoder(4, (1, 8, 8)))
    with pytest.raises(ValueError, match=r"takes 4x4 maps, .* returns 2x2 maps"):
        require_same_spatial_shape(encoder, decoder)
    with pytest.raises(ValueError, match=r"takes vectors, .* returns 2x2 maps"):
        require_same_spatial_shape(encoder, ConvDecoder(4, (1, 8, 8)))


FAMILIES = {
    "gaussian": (DiagonalGaussian, StandardNormal),
    "nearest_code": (partial(NearestCode, num_codes=7, code_dim=3), UniformCodes),
    "relaxed": (partial(RelaxedCategorical, num_categories=4), UniformCodes),
    "autoregressive": (partial(NearestCode, num_codes=7), partial(AutoregressiveCodes, width=8, depth=1, heads=2)),
}


def model_of(name):
    torch.manual_seed(0)
    posterior, prior = FAMILIES[name]
    return VAE(
        BINARY, 6, partial(SpatialEncoder, **SMALL), partial(SpatialDecoder, **SMALL), posterior, prior, Bernoulli
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_maps_train_reconstruct_and_sample(name):
    model, x = model_of(name), (torch.rand(5, *BINARY.shape) < 0.5).float()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(2):  # the last convolution of a new residual block is zero, and lets no gradient by
        trace = model(x, 2)
        loss = -elbo(bound_terms(trace, x))
        if "code" in name or "auto" in name:
            regularizer = Commitment(TrainingSpec(BINARY, model.latents, 100))
            loss = loss + regularizer.weight * regularizer(RegularizerInputs(trace, x, model.decode, ()))
        assert loss.shape == (5,) and loss.isfinite().all()
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert all(not torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())
    assert trace.latents[0].z.shape == (2, 5, *model.latent_shape) and model.latent_shape[1:] == (2, 3)
    with torch.no_grad():
        model.eval()
        assert model.sample(3).mean.shape == (3, *BINARY.shape)
        assert model.reconstruct(x).mean.shape == (5, *BINARY.shape)

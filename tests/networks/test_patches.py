"""Networks that see an image as a map of patches: shuffles undo each other, sizes follow, and 1 changes nothing."""

import pytest
import torch
from torch import nn

from vae_lab.networks.conv import ConvDecoder, ConvEncoder
from vae_lab.networks.resnet import ResNetDecoder, ResNetEncoder

PAIRS = [(ConvEncoder, ConvDecoder), (ResNetEncoder, ResNetDecoder)]


def maps_of(network, x):
    """Channels and sides of the output of each convolution."""
    maps = []
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            maps.append(tuple(x.shape[1:3]))
    return maps


def test_a_decoder_of_identities_inverts_an_encoder_of_identities():
    shape, options = (2, 6, 10), {"patch_size": 2, "channels": [8], "activation": nn.Identity}
    options["initializer"] = lambda weight: (nn.init.dirac_ if weight.dim() == 4 else nn.init.eye_)(weight)
    encoder, decoder = ConvEncoder(shape, 120, **options), ConvDecoder(120, shape, **options)
    x = torch.rand(3, *shape)
    z = encoder(x)
    assert torch.equal(z[:, :15], x[:, 0, ::2, ::2].flatten(1))
    assert torch.equal(decoder(z), x)


def test_the_maps_of_large_images_in_patches():
    options = {"patch_size": 4, "width": 64, "max_width": 256}
    encoder, decoder = ConvEncoder((3, 128, 128), 7, **options), ConvDecoder(5, (3, 128, 128), **options)
    assert maps_of(encoder, torch.rand(1, 3, 128, 128)) == [(64, 32), (128, 16), (256, 8), (256, 4)]
    assert maps_of(decoder, torch.rand(1, 5)) == [(256, 8), (128, 16), (64, 32), (64, 32), (48, 32)]
    assert decoder[0].out_features == 256 * 4 * 4


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
@pytest.mark.parametrize(
    ("shape", "patch_size", "channels"),
    [((1, 8, 8), 2, None), ((1, 28, 28), 7, [6]), ((3, 24, 40), 2, None), ((2, 36, 12), 3, [8, 4])],
)
def test_patches_of_every_shape(encoder, decoder, shape, patch_size, channels):
    options = {"patch_size": patch_size, "width": 4, "max_width": 8, "channels": channels}
    assert encoder(shape, 7, **options)(torch.rand(2, *shape)).shape == (2, 7)
    assert decoder(5, (30, *shape[1:]), **options)(torch.randn(2, 5)).shape == (2, 30, *shape[1:])


def test_patches_of_one_pixel_leave_networks_and_their_checkpoints_as_they_were():
    encoder, decoder = ConvEncoder((1, 8, 8), 7, patch_size=1), ConvDecoder(5, (1, 8, 8), patch_size=1)
    assert [key for key in encoder.state_dict() if "weight" in key] == ["0.weight", "3.weight"]
    assert [key for key in decoder.state_dict() if "weight" in key] == ["0.weight", "3.weight", "5.weight"]
    assert encoder[0].weight.shape == (32, 1, 4, 4) and decoder[5].weight.shape == (1, 32, 3, 3)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_patch_size_that_does_not_fit_names_those_that_do(encoder, decoder):
    for network, sizes, key in ((encoder, ((3, 24, 40), 7), "encoder"), (decoder, (7, (3, 24, 40)), "decoder")):
        with pytest.raises(ValueError, match=rf"model\.{key}\.patch_size is at least 1; found 0"):
            network(*sizes, patch_size=0)
        with pytest.raises(ValueError, match=r"patch_size=5 does not divide both sides of 24x40 images") as error:
            network(*sizes, patch_size=5)
        assert f"Choose model.{key}.patch_size from 1, 2, 4, 8, or" in str(error.value)
        assert "data.image_size=25" in str(error.value)


@pytest.mark.parametrize("network", [ConvDecoder, ResNetDecoder])
def test_a_map_of_patches_that_cannot_be_halved_names_a_size_that_can(network):
    with pytest.raises(ValueError, match="52x52 image in 4x4 patches cannot be halved 2 times") as error:
        network(4, (1, 52, 52), channels=[8, 8, 8], patch_size=4)
    assert "data.image_size=48" in str(error.value)

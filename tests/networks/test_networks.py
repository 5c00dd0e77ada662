"""Networks: sizes follow from shapes, patches are undone by shuffles, and an image that cannot be halved is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vae_lab.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder, ResNetDecoder, ResNetEncoder, group_norm
from vae_lab.networks.conv import num_halvings

PAIRS = [(MLPEncoder, MLPDecoder), (ConvEncoder, ConvDecoder), (ResNetEncoder, ResNetDecoder)]
SMALL = {"width": 4, "max_width": 8}


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 128, 128), (2, 24, 40)])
def test_every_network_takes_every_usual_size(encoder, decoder, shape):
    options = {} if encoder is MLPEncoder else SMALL
    x = torch.rand(2, *shape)
    assert encoder(shape, 7, **options)(x).shape == (2, 7)
    assert decoder(5, (6, *shape[1:]), **options)(torch.randn(2, 5)).shape == (2, 6, *shape[1:])


@given(
    kernel=st.sampled_from([2, 3, 4, 5]),
    depth=st.integers(1, 3),
    small=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
@settings(deadline=None, max_examples=25)
def test_a_conv_decoder_doubles_exactly_for_any_kernel(kernel, depth, small):
    out = (1, small[0] << depth, small[1] << depth)
    decoder = ConvDecoder(3, out, channels=[4] * depth, kernel_size=kernel)
    assert decoder(torch.randn(1, 3)).shape == (1, *out)


def test_halvings_stop_at_an_odd_or_small_side():
    assert [num_halvings(n, n) for n in (4, 7, 8, 28, 32, 64, 128)] == [0, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("network", [ConvDecoder, ResNetDecoder])
def test_a_side_that_cannot_be_halved_names_a_size_that_can(network):
    with pytest.raises(ValueError, match=r"(?s)50x50 image cannot be halved 3 times.*data\.image_size=48"):
        network(4, (1, 50, 50), channels=[8, 8, 8])
    with pytest.raises(ValueError, match=r"(?s)52x52 image in 4x4 patches cannot be halved 2.*data\.image_size=48"):
        network(4, (1, 52, 52), channels=[8, 8, 8], patch_size=4)
    with pytest.raises(ValueError, match=r"(?s)50x32 image.*48x32 \(data\.image_size=\[48,32\]\)"):
        network(4, (1, 50, 32), channels=[8, 8, 8])


def test_every_width_has_a_normalisation():
    for channels in range(1, 70):
        assert group_norm(channels)(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)


def test_a_map_used_up_by_valid_convolutions_is_refused():
    with pytest.raises(ValueError, match="convolution 3 of 3 leaves an empty map"):
        ConvEncoder((1, 8, 8), 2, channels=[4, 4, 4], kernel_size=3, padding="valid")
    with pytest.raises(ValueError, match=r"expected 2, as many as model\.encoder\.channels"):
        ConvEncoder((1, 8, 8), 2, channels=[4, 4], strides=[2])


def test_valid_convolutions_leave_the_keras_sizes():
    options = {"channels": [32, 64, 64, 64, 64, 64], "strides": [2] * 5 + [1], "kernel_size": 3, "padding": "valid"}
    assert ConvEncoder((3, 128, 128), 10, **options)[-1].in_features == 64


def test_an_initializer_reaches_every_weight_and_zeroes_biases():
    network = ConvEncoder((1, 8, 8), 2, channels=[4], hidden=[5], initializer=lambda w: nn.init.constant_(w, 0.5))
    layers = [layer for layer in network if hasattr(layer, "weight")]
    assert len(layers) == 3
    assert all((layer.weight == 0.5).all() and (layer.bias == 0).all() for layer in layers)


def test_a_residual_block_starts_as_the_identity():
    block = next(m for m in ResNetEncoder((1, 16, 16), 2, **SMALL) if type(m).__name__ == "ResidualBlock")
    channels = block.body[2].in_channels
    x = torch.randn(2, channels, 5, 5)
    assert torch.equal(block(x), x)


# --- patches of an image as channels of a smaller map ---


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


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS[1:])
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


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS[1:])
def test_a_patch_size_that_does_not_fit_names_those_that_do(encoder, decoder):
    for network, sizes, key in ((encoder, ((3, 24, 40), 7), "encoder"), (decoder, (7, (3, 24, 40)), "decoder")):
        with pytest.raises(ValueError, match=rf"model\.{key}\.patch_size is at least 1; found 0"):
            network(*sizes, patch_size=0)
        choice = rf"Choose model.{key}.patch_size from 1, 2, 4, 8, or .*data\.image_size=\[25,40\]"
        with pytest.raises(ValueError, match=rf"(?s)=5 does not divide both sides of 24x40 images.*{choice}"):
            network(*sizes, patch_size=5)

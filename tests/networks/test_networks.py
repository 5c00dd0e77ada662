"""Networks: sizes follow from shapes, and an image that cannot be halved is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vae_lab.networks.conv import ConvDecoder, ConvEncoder, group_norm, num_halvings
from vae_lab.networks.mlp import MLPDecoder, MLPEncoder
from vae_lab.networks.resnet import ResNetDecoder, ResNetEncoder

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
    with pytest.raises(ValueError, match="50x50 image cannot be halved 3 times") as error:
        network(4, (1, 50, 50), channels=[8, 8, 8])
    assert "data.image_size=48" in str(error.value)


def test_a_map_used_up_by_valid_convolutions_is_refused():
    with pytest.raises(ValueError, match="convolution 3 of 3 leaves an empty map"):
        ConvEncoder((1, 8, 8), 2, channels=[4, 4, 4], kernel_size=3, padding="valid")
    with pytest.raises(ValueError, match=r"expected 2, as many as model\.encoder\.channels"):
        ConvEncoder((1, 8, 8), 2, channels=[4, 4], strides=[2])


def test_valid_convolutions_leave_the_keras_sizes():
    encoder = ConvEncoder(
        (3, 128, 128),
        10,
        channels=[32, 64, 64, 64, 64, 64],
        strides=[2] * 5 + [1],
        kernel_size=3,
        padding="valid",
    )
    head = encoder[-1]
    assert isinstance(head, nn.Linear) and head.in_features == 64


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


@pytest.mark.parametrize("channels", range(1, 70))
def test_every_width_has_a_normalisation(channels):
    assert group_norm(channels)(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)

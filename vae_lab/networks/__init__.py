"""Encoder and decoder networks: tensors to tensors, layer sizes derived from shapes, no probability.

An encoder maps images (B, C, H, W) to (B, out_features); a decoder maps latents (B, in_features) to
(B, C, H, W). A config builds a partial (`_partial_`), which the model completes with the two shapes.
"""

from vae_lab.networks.conv import ConvDecoder, ConvEncoder, group_norm
from vae_lab.networks.mlp import MLPDecoder, MLPEncoder
from vae_lab.networks.resnet import ResNetDecoder, ResNetEncoder, SpatialDecoder, SpatialEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "ResNetDecoder",
    "ResNetEncoder",
    "SpatialDecoder",
    "SpatialEncoder",
    "group_norm",
]

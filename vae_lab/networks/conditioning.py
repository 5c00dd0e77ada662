"""Labels as what networks take: a plane beside an image's channels, features beside a latent's.

A conditional VAE: Sohn et al. 2015, "Learning Structured Output Representation using Deep Conditional Generative
Models"; Kingma et al. 2014, arXiv:1406.5298.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vae_lab.core import ImageSpec


def require_labels(image: ImageSpec) -> None:
    """ValueError for images that have none."""
    if image.num_classes < 1:
        raise ValueError(
            "model.conditional=true: these images have no labels.\n"
            "Choose data=mnist, digits or fashion_mnist, sort the pictures of data.folder into a subfolder per class, "
            "or leave model.conditional=false"
        )


def require_y(y: Tensor | None) -> Tensor:
    """The labels. ValueError: a conditional model was called without."""
    if y is None:
        raise ValueError("this model is conditional: give it the labels y, int64 (B,), with the images or latents")
    return y


class LabelPlane(nn.Module):
    """One more channel of an image, learned for each class."""

    num_channels = 1

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.size = (1, image.height, image.width)
        self.planes = nn.Embedding(image.num_classes, image.height * image.width)
        nn.init.normal_(self.planes.weight, std=0.1)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        """x: (B, C, H, W), y: (B,); (B, C + 1, H, W)."""
        return torch.cat((x, self.planes(require_y(y)).view(-1, *self.size).to(x.dtype)), 1)


class LabelFeatures(nn.Module):
    """One more feature of a latent for each class: 1 for its own, 0 for the others."""

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.num_features = image.num_classes

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        """z: (N, F, *map), y: (N,); (N, F + classes, *map)."""
        classes = one_hot(require_y(y), self.num_features).to(z.dtype)
        places = classes.view(*classes.shape, *(1 for _ in z.shape[2:])).expand(-1, -1, *z.shape[2:])
        return torch.cat((z, places), 1)

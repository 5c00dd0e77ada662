"""Labels as network inputs: a channel appended to an image, features appended to a latent.

Conditional VAEs: Sohn et al. 2015, "Learning Structured Output Representation using Deep Conditional Generative
Models"; Kingma et al. 2014, arXiv:1406.5298.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vae_lab.core import ImageSpec


def require_labelled_images(image: ImageSpec) -> None:
    """ValueError if the images have no labels."""
    if image.num_classes < 1:
        raise ValueError(
            "model.conditional=true: these images have no labels.\n"
            "Choose data=mnist, digits or fashion_mnist, sort the pictures of data.folder into a subfolder per class, "
            "or set model.conditional=false"
        )


def require_labels(y: Tensor | None) -> Tensor:
    """Labels of a conditional model, int64 (B,). ValueError: y is None."""
    if y is None:
        raise ValueError("this model is conditional: give it the labels y, int64 (B,), with the images or latents")
    return y


class LabelChannel(nn.Module):
    """Append an image channel learned for each class."""

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.size = (1, image.height, image.width)
        self.planes = nn.Embedding(image.num_classes, image.height * image.width)
        nn.init.normal_(self.planes.weight, std=0.1)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        """x (B, C, H, W) and y (B,) to (B, C + 1, H, W)."""
        return torch.cat((x, self.planes(require_labels(y)).view(-1, *self.size).to(x.dtype)), 1)


class OneHotLabels(nn.Module):
    """Append the one-hot label to the features of a latent."""

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.num_classes = image.num_classes

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        """z (N, F, *map) and y (N,) to (N, F + num_classes, *map)."""
        classes = one_hot(require_labels(y), self.num_classes).to(z.dtype)
        expanded = classes.view(*classes.shape, *(1 for _ in z.shape[2:])).expand(-1, -1, *z.shape[2:])
        return torch.cat((z, expanded), 1)

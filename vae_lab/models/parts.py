"""Encoder and decoder of a VAE as modules from tensors to tensors, for programs that know no distributions."""

from __future__ import annotations

from torch import Tensor, nn

from vae_lab.distributions.gaussians import as_diagonal_normal
from vae_lab.models.vae import VAE


class EncoderPart(nn.Module):
    """Images (B, C, H, W), and labels of a conditional model, to the parameters of q(z|x).

    They are mean and standard deviation where q(z|x) is a diagonal Gaussian, else the outputs of the encoder.
    """

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model
        self.inputs = ["images", "labels"][: 1 + model.conditional]
        x = next(model.parameters()).new_zeros(1, *model.image.shape)
        y = x.new_zeros(1).long() if model.conditional else None
        self.is_gaussian = as_diagonal_normal(model.encode(x, y)) is not None
        self.outputs = ["mean", "stddev"] if self.is_gaussian else ["params"]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.is_gaussian:
            normal = as_diagonal_normal(self.model.encode(images, labels))
            assert normal is not None
            return normal.loc, normal.scale
        plane = self.model.label_plane
        return (self.model.encoder(images if plane is None else plane(images, labels)),)


class DecoderPart(nn.Module):
    """Latents (B, *event), and labels of a conditional model, to the means of p(x|z), (B, C, H, W)."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.outputs = ["latents", "labels"][: 1 + model.conditional], ["images"]

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> tuple[Tensor]:
        return (self.model.decode(latents, labels).mean,)

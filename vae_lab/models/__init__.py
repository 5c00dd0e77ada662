"""Models: networks, posteriors, priors and likelihoods combined; images in, a Trace out."""

from vae_lab.models.base import Model
from vae_lab.models.ladder import LadderVAE
from vae_lab.models.vae import VAE

__all__ = ["VAE", "LadderVAE", "Model"]

"""From tensors to matplotlib figures: every picture that vae_lab logs, with a title and axes.

Pure functions of CPU tensors; `render` turns a figure into pixels.
"""

from vae_lab.figures.canvas import render
from vae_lab.figures.charts import aggregate_posterior, kl_per_dimension, latent_scatter
from vae_lab.figures.network import autoencoder, network_drawing, trace_layers
from vae_lab.figures.tiles import interpolations, latent_grid, reconstructions, samples, traversals

__all__ = [
    "aggregate_posterior",
    "autoencoder",
    "interpolations",
    "kl_per_dimension",
    "latent_grid",
    "latent_scatter",
    "network_drawing",
    "reconstructions",
    "render",
    "samples",
    "trace_layers",
    "traversals",
]

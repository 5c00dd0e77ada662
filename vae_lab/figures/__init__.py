"""Matplotlib figures of every picture that vae_lab logs, with titles and axes.

Pure functions of CPU tensors; `render` converts a figure to pixels.
"""

from vae_lab.figures.canvas import render
from vae_lab.figures.charts import aggregate_posterior, code_usage, kl_per_dimension, kl_per_layer, latent_scatter
from vae_lab.figures.network import autoencoder, network_drawing, trace_layers
from vae_lab.figures.tiles import (
    denoising,
    interpolations,
    latent_grid,
    reconstructions,
    sample_rows,
    samples,
    traversals,
)

__all__ = [
    "aggregate_posterior",
    "autoencoder",
    "code_usage",
    "denoising",
    "interpolations",
    "kl_per_dimension",
    "kl_per_layer",
    "latent_grid",
    "latent_scatter",
    "network_drawing",
    "reconstructions",
    "render",
    "sample_rows",
    "samples",
    "trace_layers",
    "traversals",
]

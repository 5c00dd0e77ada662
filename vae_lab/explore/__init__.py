"""python -m vae_lab.explore: the latent space of a run in the browser."""

"""Priors p(z): modules whose call gives a torch Distribution over one latent.

A prior says on which kinds of latents it lives (`kinds`), and gets what it may depend on as `Given`.
"""

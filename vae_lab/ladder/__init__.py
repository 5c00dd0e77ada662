"""Ladders: models of many stochastic layers, from a coarse map at the top down to fine ones."""

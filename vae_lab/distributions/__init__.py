"""Distributions that torch.distributions lacks, gets wrong or is slow at, as torch Distributions; and flows."""

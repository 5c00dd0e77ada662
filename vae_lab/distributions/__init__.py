"""Distributions that torch.distributions lacks, gets wrong or computes slowly; and flows."""

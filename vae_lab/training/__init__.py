"""Training: the step, the optimiser, and the Lightning module and trainer that run them."""

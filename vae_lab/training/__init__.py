"""Training: one step, its optimiser, and Lightning around it."""

"""What an objective adds to its bound: penalties of a batch, and critics trained beside the model."""

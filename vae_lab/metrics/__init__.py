"""Metrics of a trained model, over a whole split and all devices."""

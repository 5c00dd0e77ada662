"""Numbers about a trained model, summed over a whole split and reduced over devices."""

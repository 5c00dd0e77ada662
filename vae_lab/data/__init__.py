"""Data sets: a source decodes images once into one tensor, the data module hands out slices of it."""

"""Data sets: a source decodes the images once into one tensor; the data module yields slices of it as batches."""

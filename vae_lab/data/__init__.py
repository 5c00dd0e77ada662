"""Data sets: a source decodes images once into one tensor, `ImageData` hands out slices of it."""

"""Utilities independent of VAEs: errors, files, seeds, signals, processes, the CPU."""

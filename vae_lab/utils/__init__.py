"""Leaves that know nothing of VAEs: errors, files, seeds, signals, processes, the CPU."""

"""The parts of scripts/benchmark.py: what is measured, beside what, and how the two take turns."""

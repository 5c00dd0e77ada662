"""Searches: the space, its study, and each trial as a run."""

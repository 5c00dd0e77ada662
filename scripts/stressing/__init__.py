"""Faults made on purpose: kills, full disks, damaged files."""

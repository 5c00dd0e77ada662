"""python -m vae_lab.report: runs, or a sweep, as one HTML page that needs nothing else."""

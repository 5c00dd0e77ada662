"""The config: its types, its check against the code it names, error messages, what a run's config may build."""

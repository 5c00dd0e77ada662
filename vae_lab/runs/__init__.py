"""Run directories (creation, resuming, locking, checkpoint files), and the entry and exit of every command."""

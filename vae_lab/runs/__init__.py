"""Run directories: how one is made, found, locked and read, and how every command starts and ends."""

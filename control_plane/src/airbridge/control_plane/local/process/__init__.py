"""Processes of a local platform: start, supervision, restart, stop."""

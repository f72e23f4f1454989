"""Heartbeats of workers, one at a time and in batches."""

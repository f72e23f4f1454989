"""Signed releases: what may be synthesised, and what an instance may run."""

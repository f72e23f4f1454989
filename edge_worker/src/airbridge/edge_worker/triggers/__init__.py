"""Triggers of deferred tasks: thousands of them in one process per bundle version, which takes no slot."""

"""Triggers of deferred tasks that run on workers: placed at the deferral, and their events applied once."""

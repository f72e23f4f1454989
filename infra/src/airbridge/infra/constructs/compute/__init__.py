"""Constructs that run code: services, migration, worker pools."""

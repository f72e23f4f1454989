"""Constructs that hold data: buckets, database, keys, registry, secrets."""

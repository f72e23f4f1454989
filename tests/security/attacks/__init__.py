"""Attacks: each a function of its target that returns the harm done. Tests and `make proof-security` run them."""

"""Aspects: what every resource of a stack gets, whatever made it."""

"""Audit rows that the gateway writes, and the sealer that chains them."""

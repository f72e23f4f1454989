"""Mutation testing of parity: wrong values planted in every registered place, and which check finds each."""

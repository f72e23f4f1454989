"""Attacks on the platform as functions, and their runners."""

"""Seeded histories of faults and kills, and a checker of their results."""

"""Seeded histories of faults and kills, and a checker that reads what came of them."""

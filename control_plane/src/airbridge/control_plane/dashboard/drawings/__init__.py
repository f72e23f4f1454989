"""Drawings of the dashboard: the network of regions, and the chart of a task's timeline."""

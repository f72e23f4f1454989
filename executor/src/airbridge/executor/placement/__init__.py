"""Placement of tasks: from the scheduler's workloads to work items with a region and a pool."""

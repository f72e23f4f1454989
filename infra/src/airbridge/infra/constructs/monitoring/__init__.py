"""Constructs of monitoring: alarms, dashboards, topics, log groups."""

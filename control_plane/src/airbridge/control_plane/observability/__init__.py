"""Alarms, panels and dashboards from one definition, and metrics for CloudWatch."""

"""Diagnosis of tasks that are not running."""

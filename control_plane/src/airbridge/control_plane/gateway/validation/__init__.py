"""Validation of the bodies that tasks send to Airflow's Task Execution API: inert values only, by strict models.

`bodies` is the entry point; docs/security.md lists the encodings that are inert, with the reasons.
"""

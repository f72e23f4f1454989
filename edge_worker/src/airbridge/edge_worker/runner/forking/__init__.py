"""Forking: pools of templates and supervisors, and the preparation of processes that are forked from."""

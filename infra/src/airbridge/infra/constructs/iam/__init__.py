"""Constructs of IAM: roles and policy documents."""

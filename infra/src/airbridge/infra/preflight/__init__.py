"""Preflight: looks at an AWS account before anything is made in it, and names what would fail, with its remedy."""

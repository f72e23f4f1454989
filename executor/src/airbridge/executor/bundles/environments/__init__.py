"""Environments of bundles: requirements are locked under the platform's versions, installed in a confined process, and archived."""

"""Dispatch of placed work items: the outbox, the signing key, the scaling signal."""

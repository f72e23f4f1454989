"""Fixtures and fakes that test suites share."""

"""What test suites share: fixtures and fakes that stand for the world outside."""

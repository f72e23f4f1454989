"""Commands that show the platform."""

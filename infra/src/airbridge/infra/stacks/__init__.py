"""Stacks only compose constructs: every decision about a resource is in its construct."""

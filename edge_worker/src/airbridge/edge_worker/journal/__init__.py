"""The journal: the worker's durable record of what it holds and what it has yet to report."""

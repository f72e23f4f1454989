"""Local mode: the whole platform on one machine, in one directory, nothing mocked but AWS."""

"""Local mode: the whole platform on one machine, in one directory, with only AWS emulated."""

"""Building blocks that know nothing of environments: each takes plain typed props."""

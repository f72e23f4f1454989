"""Keys of hosts, as operators bind them."""

"""Inventory of facts (``ci/inventory.toml``): each version, digest, tool, action and account, and every place that states one."""

"""The commands of `airbridge`, one module a command group."""

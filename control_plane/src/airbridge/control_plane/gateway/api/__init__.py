"""HTTP endpoints of the gateway, for workers and for operators."""

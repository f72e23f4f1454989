"""Background loops of the gateway: liveness, metrics."""

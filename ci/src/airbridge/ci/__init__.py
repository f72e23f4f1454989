"""What the pipelines call: parity, builds, manifests, promotion."""

"""Commands of the pipelines: parity, builds, manifests, promotion."""

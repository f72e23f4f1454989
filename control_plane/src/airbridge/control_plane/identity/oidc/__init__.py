"""Joins by a token of an issuer: OpenID Connect in general, and Kubernetes' service accounts."""

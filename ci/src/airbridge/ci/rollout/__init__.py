"""Rollout of a release: from environment to environment, and inside one from region to region."""

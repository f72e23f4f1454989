"""The edge worker: poll, claim, run, relay, journal, cache, logs, drain."""

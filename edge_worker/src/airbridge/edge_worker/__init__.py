"""The edge worker: poll, claim, run, proxy, journal, cache, logs, drain."""

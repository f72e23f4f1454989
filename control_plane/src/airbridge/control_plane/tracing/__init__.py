"""Traces: every event of a work item as a span, on both sides of the wire, sent to an OpenTelemetry collector.

A span is made from an event that is in the ledger already: what happened during a cut, or while the collector was away,
is exported afterwards with the time at which it happened, and neither the scheduler nor a worker knows of a collector
(docs/adr/, "Traces are made from events"). Off unless an endpoint is configured; then one gateway at a time exports.
"""

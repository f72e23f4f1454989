"""Traces: every event of a work item as a span, on both sides of the wire, sent to an OpenTelemetry collector.

Spans are derived from events in the ledger: events during a network outage, or while the collector was down, are exported
afterwards with their original times, and neither the scheduler nor a worker connects to a collector
(docs/adr/, "Traces are made from events"). Off unless an endpoint is configured; then one gateway at a time exports.
"""

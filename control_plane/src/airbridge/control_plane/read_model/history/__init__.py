"""History: timelines, events and the audit log."""

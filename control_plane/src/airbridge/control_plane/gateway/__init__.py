"""Gateway: terminates mutual TLS and serves claims, heartbeats and the Task Execution API to edge workers."""

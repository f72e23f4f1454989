"""The worker's side of the gateway's API: client, identity, join, heartbeat, reporter."""

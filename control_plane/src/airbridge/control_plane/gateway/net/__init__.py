"""Network layer of the gateway: TLS, HTTP, connection and rate limits, thread pools."""

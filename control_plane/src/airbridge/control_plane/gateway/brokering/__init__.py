"""AWS credentials that the gateway hands to workers of pools whose credentials are brokered."""

"""AWS clients: queues, object stores, and signing by AWS's clock."""

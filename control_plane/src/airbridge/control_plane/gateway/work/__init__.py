"""Work items in the gateway: claims, exchanges, releases, fencing."""

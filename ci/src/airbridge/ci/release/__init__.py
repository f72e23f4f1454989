"""The release manifest: what a release is made of, and who vouches for it."""

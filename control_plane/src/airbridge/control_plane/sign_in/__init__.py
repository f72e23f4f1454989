"""Sign-in of operators by OpenID Connect: an ID token of the configured issuer gives an access token of minutes."""

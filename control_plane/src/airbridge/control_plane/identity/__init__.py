"""Identity: the CA, worker certificates, join and access tokens, scopes, revocation."""

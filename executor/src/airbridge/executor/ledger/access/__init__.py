"""Database rights: a role per service, and the services' logins."""

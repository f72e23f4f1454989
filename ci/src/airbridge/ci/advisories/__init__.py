"""Published vulnerabilities of locked packages: statements, their check, and what is generated from them."""

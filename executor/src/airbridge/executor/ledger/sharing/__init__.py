"""Teams that share pools, and what each uses."""

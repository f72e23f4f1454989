"""Restrictions that a Linux process places on itself: Landlock, hardening, confinement."""

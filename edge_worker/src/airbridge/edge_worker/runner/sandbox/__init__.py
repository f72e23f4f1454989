"""The sandbox around task processes, and the check of which parts of it this host supports."""

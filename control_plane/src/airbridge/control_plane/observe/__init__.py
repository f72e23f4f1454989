"""What an operator asks: where is my task and why, is this region healthy, who works there, what changed.

One read model for the command line and the dashboard. Every function takes an open session, reads and never
writes, answers with frozen values, and reads a bounded number of rows however large the tables are:

- `tasks.find`, `timeline.of`: one task through all its tries, on both sides of the wire
- `causes.explain`: one sentence that says why a task is not running, and a stable code for it
- `regions.listing`, `workers.listing`, `work.listing`, `audit.listing`: the four lists
- `screen.take`: all of it that fits on one screen

`Platform` holds what is not in the database: the region catalogue, the compatibility matrix and the settings.
"""

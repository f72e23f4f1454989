"""Read model of the command line and the dashboard: tasks, causes, regions, workers, work, events.

Every function takes an open session, never writes, returns frozen values, and reads a bounded number of rows for any
size of the tables:

- `tasks.find`, `timeline.of`: one task through all its tries, in the control plane and at the edge
- `causes.explain`: the cause of a task's state: a stable code and one sentence
- `regions.listing`, `workers.listing`, `work.listing`, `audit_log.listing`: the four lists
- `overview.take`: the platform on one screen

`Platform` holds the inputs that are not in the database: the region catalogue, the compatibility matrix and the settings.
"""

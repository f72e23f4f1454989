"""The warm runner: a task costs two forks of a process that has Airflow loaded and the DAG file parsed.

::

    agent ──exec── zygote ──fork── template (one per snapshot and DAG file) ──fork── supervisor ──fork── task
                        └─────────fork, for files that must not be shared──────────┘

The zygote has the Task SDK loaded and nothing of the agent's; a template has one DAG file parsed; a supervisor is
the Task SDK's own, with the relay in place of the API server; a task is the Task SDK's task runner. Whatever dies,
nothing is left behind: a task dies with its supervisor, orphans go to the supervisor, to the zygote, or to the agent.
"""

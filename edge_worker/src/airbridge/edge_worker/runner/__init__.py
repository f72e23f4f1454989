"""The warm runner: a task costs one fork of a process that has Airflow loaded and the DAG file parsed.

::

    agent ──exec── zygote ──fork── template (one per snapshot and DAG file) ──fork── task
                        └───fork── supervisor (free, or of one task at a time) ┄┄┄┄┄┄┄┘

The zygote has the Task SDK loaded and nothing of the agent's; a template has one DAG file parsed, or, for a file that must not be
shared, none; a supervisor is the Task SDK's own, with the execution API proxy in place of the API server, and runs no code of a DAG file; a task is
the Task SDK's task runner. Whatever dies, nothing is left behind: a template kills a task whose supervisor is gone, and what a
task leaves running; what a dead template leaves falls to the zygote, what that leaves to the agent.
"""

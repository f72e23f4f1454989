"""Limits of tasks: what each may use of the host's memory, processors, processes and disk, and the cgroups that hold it to that."""

"""Bundle of the warm-up: one DAG file, in the installed package, where no task can write."""

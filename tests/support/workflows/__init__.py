"""GitHub's workflows on this machine: expressions, and a runner of jobs."""

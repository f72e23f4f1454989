"""DAG bundles: sources, parsing before publication, and publication to every region."""

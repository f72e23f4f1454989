"""Work items on the worker: poll, claim, launch, drain, recover."""

"""The execution API proxy: the local endpoint that running tasks use in place of the control plane."""

"""A real Kubernetes control plane for tests, with nodes that are objects only."""

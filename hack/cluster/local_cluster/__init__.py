"""A real Kubernetes on one machine, without Docker: see ../README.md."""

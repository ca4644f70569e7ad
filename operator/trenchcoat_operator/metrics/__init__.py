"""Numbers for Prometheus; docs/metrics.md has the table of them."""

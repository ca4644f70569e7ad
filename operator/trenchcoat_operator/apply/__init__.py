"""Doing: what a plan asks for is written to the cluster and the store."""

"""Builders of the objects that run the stages: pure functions from a spec and an artifact to YAML."""

"""The Trenchcoat custom resource, and everything that follows from a spec alone."""

"""The report of a run: one HTML page that needs no network, from a Trenchcoat and what its stages left."""

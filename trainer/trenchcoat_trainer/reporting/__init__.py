"""The report of a run: read from what the stages left in the store, and written beside it."""

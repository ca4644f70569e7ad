"""Exact softmax over a sequence's first tokens and its last ones; each layer has a window of its own."""

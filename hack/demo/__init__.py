"""The demo: everything that `make demo` does, step by step."""

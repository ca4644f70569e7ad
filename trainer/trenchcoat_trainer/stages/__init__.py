"""The stages, one module each with `run(context)`."""

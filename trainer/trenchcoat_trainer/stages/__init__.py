"""The stages, one module each with `run(context)`, and what they stand on."""

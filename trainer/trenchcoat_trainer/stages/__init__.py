"""The stages, one module each with `run(context)`, and what they stand on.

What every stage uses loads torch only when tensors are at hand: the shard stage has none."""

"""What every stage runs on: its artifact in the store, its progress, its ranks, its end.

Torch is loaded only when tensors are at hand: the shard stage has none.
"""

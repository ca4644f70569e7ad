"""What the operator and the trainer both know of S3: how a store is opened, and what its failures mean.

How long each waits for a store, what it does there and what it tells of a failure is its own.
"""

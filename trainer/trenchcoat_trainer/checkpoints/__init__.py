"""The teacher on disk: found and checked, cut into shards, and run layer by layer."""

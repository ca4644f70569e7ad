"""The stages of a linearization: tokenize, collect, shard, select, cria, stitch, evaluate, export."""

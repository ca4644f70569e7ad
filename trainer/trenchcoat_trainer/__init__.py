"""The stages of a linearization: tokenize, collect, shard, select, cria, stitch, adapt, evaluate, export."""

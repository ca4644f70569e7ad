"""The stages of a linearization: tokenize, collect, shard, cria, stitch, evaluate, export."""

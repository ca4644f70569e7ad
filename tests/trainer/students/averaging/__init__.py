"""A form that the product does not have: other parameters, other windows by layer, no maps to compare."""

"""Commands that run side by side, and where their minutes went."""

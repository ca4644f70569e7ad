"""The report's pictures, each with a title, a description in words, and what was drawn."""

"""Where the teacher and the text come from."""

"""The student, in all its forms."""

"""What a Trenchcoat asks for, and what it asked for before: artifacts, and what each of them needs."""

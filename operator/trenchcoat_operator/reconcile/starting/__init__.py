"""Who may start: of the works that could, those that do now, and what holds the others."""

"""`kubectl trenchcoat`: an administrator's view of linearizations, from the terminal."""

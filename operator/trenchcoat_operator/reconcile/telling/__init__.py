"""What is told: the status with its rows, columns and conditions, events, and GPU seconds used."""

"""What is known of the works: where each stands, and what the end of its Jobs means."""

"""What a release consists of, and where its version stands."""

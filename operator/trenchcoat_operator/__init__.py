"""The Trenchcoat operator: watches Trenchcoats, starts their stages, tells how they go."""

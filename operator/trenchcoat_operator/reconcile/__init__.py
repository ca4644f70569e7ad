"""Decisions, all of them pure: the same look at the same moment gives the same plan."""

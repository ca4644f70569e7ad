"""Decisions, all of them pure: the same look at the same moment gives the same plan.

`decide` goes through the rooms in order: what is known of the works (`assessment`), who may start
(`starting`), what must stop or go (`stopping`), what is told (`telling`), and when to look again (`again`).
"""

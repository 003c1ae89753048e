"""Scores that can be trusted: protocols, intervals, baselines and the report."""

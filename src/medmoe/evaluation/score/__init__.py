"""Answers to score rows: protocols applied, intervals, baselines, breakdowns."""

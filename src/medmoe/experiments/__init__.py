"""Whole runs: training and evaluation of all phases in one process."""

"""Serving a model to people and programs, and the interface that every engine behind it has."""

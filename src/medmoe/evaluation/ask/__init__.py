"""Asking a model all questions of a task: the records, resumable answer files, controls, scores."""

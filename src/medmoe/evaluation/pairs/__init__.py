"""Pairs of questions whose two answers must agree: negated, and swapped."""

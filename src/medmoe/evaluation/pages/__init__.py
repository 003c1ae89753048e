"""HTML pages of what was measured: reports, cards, flips, evidence."""

"""Two systems or two sets of runs against each other, paired."""

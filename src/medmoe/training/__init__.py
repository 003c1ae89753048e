"""The training phases, the table of what trains in each, and the trainer they share."""

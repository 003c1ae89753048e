"""`medmoe train`: a recipe's phases, each a run directory that the next one reads."""

"""Turns checkpoints of other code into ours: the paper's reference code, and stock Llava."""

"""What a run leaves on disk: committed checkpoints, its state, its directory."""

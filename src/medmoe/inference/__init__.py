"""The engine that answers questions about images."""

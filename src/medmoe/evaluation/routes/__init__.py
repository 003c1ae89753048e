"""What `medmoe routes` sees, counts and draws of a model's routing on a task."""

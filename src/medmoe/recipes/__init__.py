"""Package data: models and experiments as YAML files."""

"""What phases do besides training on packed questions: the stand-in backbones and the router."""

"""Vision encoders and language models that a Med-MoE is built from."""

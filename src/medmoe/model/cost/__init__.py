"""What a model costs to hold and to ask: parameters, bytes, FLOPs (the paper's Tables 8 and 13)."""

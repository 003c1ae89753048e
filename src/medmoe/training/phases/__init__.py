"""The paper's phases, one file each, and the stand-in backbones before them."""

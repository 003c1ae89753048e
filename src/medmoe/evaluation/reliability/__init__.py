"""How far a confidence can be trusted: calibration, abstention, and what it costs."""

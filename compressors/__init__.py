"""Layer 1: what can be done to a layer."""

"""Layer 4: networks, data, and the scripts that train, compress and measure."""

"""Plywise: an agent that picks, for each layer of a network, how to compress it."""

__version__ = "0.1.0"

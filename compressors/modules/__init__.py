"""Modules that take a layer's place, and how weights of any layer kind are read and written.

In: torch layers. Out: chains, branches and wrappers of them that run as ordinary modules. Read `layers.py` first.
"""

"""Techniques of the stage STRUCTURE: fewer channels, low rank, other layers in a layer's place.

In: a layer and its statistics. Out: a smaller module. Read `filter_pruning.py`, then `low_rank.py`.
"""

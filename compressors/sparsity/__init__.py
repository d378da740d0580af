"""Techniques of the stage SPARSITY: weights set to zero.

In: a layer and its statistics. Out: the layer with zeros, the rest refitted. Read `sparse_fit.py` first.
"""

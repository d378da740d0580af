"""Techniques of the stages WEIGHTS and ACTIVATIONS: number formats of weights, inputs and outputs.

In: a layer and its statistics. Out: the layer with rounded numbers. Read `weight_quantizer.py` first.
"""

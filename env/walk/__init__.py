"""The Gymnasium environment: one network or hundreds, layer by layer.

In: `PriceTable` and a `Demand`. Out: observations, masks and rewards. Read `compression_env.py`, then `walk.py`: it
moves a `WalkState`, from which an `Outlook` follows.
"""

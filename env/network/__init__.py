"""The network: its layers in order, channel groups, shortcuts, samples to run it on, recipes it may take.

In: an `nn.Module` and an example input. Out: `Network`. Read `network.py` first.
"""

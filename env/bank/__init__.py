"""Compressed layers, each made once, and networks put together from them.

In: `Network`, statistics, a plan. Out: a repaired network and its outputs. Read `bank.py` first.
"""

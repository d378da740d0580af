"""Demands, the score of a plan, and what is expected of a plan from prices alone.

In: `PriceTable` and a `Demand`. Out: scores; the `Surrogate`. Read `score.py` first.
"""

"""Search methods behind one interface, at a counted budget of exact evaluations.

In: an evaluator. Out: the best plan. Read `search_method.py` first.
"""

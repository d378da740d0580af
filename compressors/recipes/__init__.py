"""Techniques, recipes and plans as values, and their written forms.

In: text or YAML. Out: `Technique`, `Recipe`, `Plan`, and the registry of techniques. Read `technique.py` first.
"""

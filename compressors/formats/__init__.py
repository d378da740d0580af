"""Number formats: finite alphabets of weight values.

In: float weights. Out: a `WeightFormat` that encodes and decodes them bit for bit. Read `weight_format.py` first.
"""

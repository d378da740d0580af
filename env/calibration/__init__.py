"""One pass over calibration samples, forwards and backwards.

In: `Network` and samples. Out: `LayerStatistics` of each layer. Read `calibration.py` first.
"""
